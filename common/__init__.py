"""What lockd and the clients share: words, messages, formats and limits. No decisions are taken here."""
