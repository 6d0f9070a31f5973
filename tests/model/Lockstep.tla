---- MODULE Lockstep ----
(* One file, its lock, and its replicas. See README.md beside this file for what is modelled and what is not.

   A log is the sequence of the tokens under which its ops were done: a token has one op, so it names it. Pushes are not
   kept as messages: F[t] are the logs that the holder of token t has pushed, and each may be delivered to anybody, at
   any later time, any number of times, or never. An ack that was sent may be used at any later time or never. A client
   that is dead is one that does nothing; Hello is where it has forgotten its tenure.

   Each element of Rules is a rule of the protocol; one that is left out of the set is not kept.                    *)
EXTENDS Naturals, FiniteSets, Sequences, TLC

CONSTANTS Replicas,   \* replica ids; one that is wiped stays away for ever, and another one joins
          Members,    \* so many of them are in the in-sync set at first
          Before,     \* so many ops are there at first, acknowledged by the set: its members alone have them
          Tokens,     \* so many grants, with those before
          Changes,    \* so long can a log become
          Reading,    \* TRUE: there are reads and shared locks
          Fetches,    \* so many fetches are under way at once; 0: an answer is only a late push
          Parts,      \* TRUE: an answer may come in parts
          Restarts,   \* TRUE: lockd may crash
          Rules

VARIABLES tok,      \* lockd: the newest token
          isr,      \* lockd, durable: the in-sync set
          live,     \* lockd: who has a session
          hold,     \* lockd: each replica's grant in force
          clean,    \* lockd: the log at which the file is clean, or Nothing
          ctok,     \* lockd: the token that left it clean
          rep,      \* lockd: each learner's newest report that it has taken in
          log,      \* replica, durable: its ops
          prom,     \* replica, durable: the token promised
          conf,     \* replica, durable: the token followed
          cl,       \* client: its tenure, volatile
          F,        \* what the holder of each token has pushed
          fm,       \* each replica's fetch under way, as its request or as the answer
          acked,    \* told to somebody: the newest log acknowledged to its author
          reads,    \* told to somebody: the newest log given out by a read
          seen,     \* the largest token that each replica has met
          bad       \* what must not happen and cannot be read from a state

lockd == <<tok, isr, live, hold, clean, ctok, rep>>
disk == <<log, prom, conf>>
told == <<acked, reads>>
vars == <<lockd, disk, cl, F, fm, told, seen, bad>>

Symmetry == Permutations(Replicas)
R(rule) == rule \in Rules
Nothing == <<0>>
Toks == 1..Tokens
Idle == [t |-> 0, m |-> "", c |-> Nothing, st |-> "idle", set |-> {}, acks |-> {}, fresh |-> FALSE, v |-> Nothing]
Free == [t |-> 0, m |-> "", c |-> Nothing]

Max(a, b) == IF a > b THEN a ELSE b
Prefix(a, b) == Len(a) <= Len(b) /\ SubSeq(b, 1, Len(a)) = a
Longer(a, b) == IF Len(a) > Len(b) THEN a ELSE b
Common(a, b) == CHOOSE n \in 0..Len(a) :
                  /\ n <= Len(b) /\ SubSeq(a, 1, n) = SubSeq(b, 1, n)
                  /\ (n < Len(a) /\ n < Len(b)) => a[n + 1] # b[n + 1]
Holders(m) == {p \in Replicas : hold[p].t # 0 /\ hold[p].m = m}
Newest(t) == CHOOSE m \in F[t] : \A n \in F[t] : Len(n) <= Len(m)
InForce(p) == cl[p].t # 0 /\ hold[p].t = cl[p].t
AllAcked(p) == R("ackall") => cl[p].set \ {p} \subseteq cl[p].acks

Init ==
  LET old == [i \in 1..Before |-> i] IN
  /\ tok = Before /\ ctok = Before /\ clean = old /\ live = Replicas
  /\ isr \in {s \in SUBSET Replicas : Cardinality(s) = Members}
  /\ hold = [p \in Replicas |-> Free] /\ rep = [p \in Replicas |-> Nothing]
  /\ log = [p \in Replicas |-> IF p \in isr THEN old ELSE <<>>]
  /\ prom = [p \in Replicas |-> IF p \in isr THEN Before ELSE 0] /\ conf = prom /\ seen = prom
  /\ cl = [p \in Replicas |-> Idle]
  /\ F = [t \in Toks |-> IF t <= Before THEN {SubSeq(old, 1, t)} ELSE {}]
  /\ fm = [p \in Replicas |-> Nothing]
  /\ acked = old /\ reads = <<>> /\ bad = {}

----------------------------------------------------------------------------------------------------------------
(* The lock *)

\* lockd grants. The Grant may arrive at any later time, or never; `set` in the tenure is the holder's word for isr.
Grant(p, m) ==
  /\ tok < Tokens /\ p \in live /\ cl[p] = Idle /\ hold[p] = Free
  /\ R("member") => p \in isr
  /\ m = "S" => clean # Nothing
  /\ R("alone") => Holders("X") = {} /\ (m = "X" => Holders("S") = {})
  /\ tok' = tok + 1
  /\ hold' = [hold EXCEPT ![p] = [t |-> tok', m |-> m, c |-> clean]]
  /\ cl' = [cl EXCEPT ![p] = [Idle EXCEPT !.t = tok', !.m = m, !.c = clean, !.st = "sent", !.set = isr]]
  /\ UNCHANGED <<isr, live, clean, ctok, rep, disk, F, fm, told, seen, bad>>

\* The Grant says that the file is unclean: the holder follows its own token and pushes its head.
Settle(p) ==
  LET t == cl[p].t IN
  /\ cl[p].st = "sent" /\ cl[p].c = Nothing /\ prom[p] <= t /\ R("settle")
  /\ prom' = [prom EXCEPT ![p] = t] /\ conf' = [conf EXCEPT ![p] = t] /\ seen' = [seen EXCEPT ![p] = Max(@, t)]
  /\ F' = [F EXCEPT ![t] = {log[p]}]
  /\ cl' = [cl EXCEPT ![p].st = "settling"]
  /\ UNCHANGED <<lockd, log, fm, told, bad>>

\* The holder may do its op: the file was clean at its head, or it has settled.
Ready(p) ==
  \/ /\ cl[p].st = "sent" /\ prom[p] <= cl[p].t
     /\ cl[p].c = log[p] \/ (cl[p].c = Nothing /\ ~R("settle"))
  \/ cl[p].st = "settling" /\ AllAcked(p) /\ (R("recheck") => prom[p] <= cl[p].t)

Change(p) ==
  LET t == cl[p].t  new == Append(log[p], t) IN
  /\ Ready(p) /\ cl[p].m = "X" /\ Len(log[p]) < Changes
  /\ log' = [log EXCEPT ![p] = new]
  /\ prom' = [prom EXCEPT ![p] = t] /\ conf' = [conf EXCEPT ![p] = t] /\ seen' = [seen EXCEPT ![p] = Max(@, t)]
  /\ F' = [F EXCEPT ![t] = @ \cup {new}]
  /\ cl' = [cl EXCEPT ![p].st = "pushed", ![p].acks = {}, ![p].c = Nothing]
  /\ bad' = IF t < seen[p] THEN bad \cup {"old"} ELSE bad
  /\ UNCHANGED <<lockd, fm, told>>

\* A first read of a file makes it, and promises its token.
Read(p) ==
  LET t == cl[p].t  fresh == Prefix(Longer(acked, reads), log[p]) IN
  /\ Reading /\ Ready(p)
  /\ cl' = [cl EXCEPT ![p].st = "read", ![p].v = log[p], ![p].fresh = fresh, ![p].c = Nothing]
  /\ prom' = [prom EXCEPT ![p] = IF @ = 0 THEN t ELSE @] /\ seen' = [seen EXCEPT ![p] = Max(@, prom'[p])]
  /\ UNCHANGED <<lockd, log, conf, F, fm, told, bad>>

\* The whole set has acked: the op is acknowledged.
Acknowledge(p) ==
  LET new == Newest(cl[p].t) IN
  /\ cl[p].st = "pushed" /\ AllAcked(p)
  /\ cl' = [cl EXCEPT ![p].st = "done"]
  /\ IF Prefix(acked, new) THEN acked' = new /\ UNCHANGED bad
     ELSE /\ UNCHANGED acked
          /\ bad' = IF Prefix(new, acked) THEN bad ELSE bad \cup {"fork"}
  /\ UNCHANGED <<lockd, disk, F, fm, reads, seen>>

\* A member does not ack: lockd takes it out, durably, and its answer changes the holder's word for the set.
Drop(p, q) ==
  /\ cl[p].st \in {"settling", "pushed"} /\ q # p
  /\ IF R("drop") THEN /\ InForce(p) /\ q \in isr /\ isr' = isr \ {q}
                       /\ cl' = [cl EXCEPT ![p].set = isr']
     ELSE /\ q \in cl[p].set /\ UNCHANGED isr
          /\ cl' = [cl EXCEPT ![p].set = @ \ {q}]
  /\ UNCHANGED <<tok, live, hold, clean, ctok, rep, disk, F, fm, told, seen, bad>>

\* lockd takes in that a hold is given back at v, which `who` have acked.
Leave(p, v, who) ==
  LET h == hold[p]  all == isr \subseteq who IN
  /\ hold' = [hold EXCEPT ![p] = Free]
  /\ IF h.m = "S" \/ v = h.c THEN UNCHANGED <<isr, clean, ctok, rep>>
     ELSE IF all \/ ~R("cleanrelease")
     THEN LET new == (who \cap live) \ isr IN
          /\ clean' = v /\ ctok' = h.t /\ isr' = isr \cup new
          /\ rep' = [q \in Replicas |-> IF q \in new THEN Nothing ELSE rep[q]]
     ELSE clean' = Nothing /\ ctok' = 0 /\ UNCHANGED <<isr, rep>>

\* What a read saw is given out.
Give(p) ==
  LET v == cl[p].v IN
  /\ reads' = Longer(reads, v)
  /\ bad' = bad \cup (IF cl[p].fresh THEN {} ELSE {"stale"})
                \cup (IF Prefix(v, reads) \/ Prefix(reads, v) THEN {} ELSE {"fork"})

\* A Release arrives, or a Cancel. Not modelled on their way: the sender does nothing more under its token.
Release(p) ==
  LET t == cl[p].t  st == cl[p].st  base == cl[p].set \cup {p}
      With(some) == {some \cup x : x \in SUBSET (cl[p].acks \ some)} IN
  /\ InForce(p) /\ p \in live
  /\ CASE st = "sent" -> Leave(p, IF prom[p] > t \/ cl[p].c \notin {Nothing, log[p]} THEN log[p] ELSE hold[p].c, {})
       [] st = "settling" -> \/ Leave(p, Newest(t), {})
                             \/ AllAcked(p) /\ \E who \in With(base) : Leave(p, Newest(t), who)
       [] st = "read" -> IF F[t] = {} THEN Leave(p, cl[p].v, {p})
                         ELSE \E who \in With(base) : Leave(p, Newest(t), who)
       [] st = "pushed" -> \E who \in With({p}) : Leave(p, Newest(t), who)
       [] st = "given" -> Leave(p, cl[p].v, {p})
       [] st = "done" -> \E who \in With(base) : Leave(p, Newest(t), who)
  /\ IF st = "read" /\ R("confirm") THEN Give(p) ELSE UNCHANGED <<reads, bad>>
  /\ cl' = [cl EXCEPT ![p] = IF R("final") \/ st # "settling" THEN Idle ELSE @]
  /\ UNCHANGED <<tok, live, disk, F, fm, acked, seen>>

\* Without a rule: a read is given out before lockd has confirmed it.
GiveUnconfirmed(p) ==
  /\ ~R("confirm") /\ cl[p].st = "read" /\ Give(p)
  /\ cl' = [cl EXCEPT ![p].st = "given"]
  /\ UNCHANGED <<lockd, disk, F, fm, acked, seen>>

----------------------------------------------------------------------------------------------------------------
(* Sessions *)

\* lockd ends a session. The client does not know it yet.
EndSession(p) ==
  /\ p \in live /\ live' = live \ {p}
  /\ hold' = [hold EXCEPT ![p] = Free]
  /\ rep' = [rep EXCEPT ![p] = Nothing]
  /\ IF hold[p].m = "X" /\ R("endunclean") THEN clean' = Nothing /\ ctok' = 0 ELSE UNCHANGED <<clean, ctok>>
  /\ UNCHANGED <<tok, isr, disk, cl, F, fm, told, seen, bad>>

\* A client, which may have died, begins a session; it has given up what it did in the one before.
Hello(p) ==
  /\ p \notin live /\ live' = live \cup {p}
  /\ cl' = [cl EXCEPT ![p] = Idle]
  /\ UNCHANGED <<tok, isr, hold, clean, ctok, rep, disk, F, fm, told, seen, bad>>

\* lockd restarts: only the in-sync set and the epoch, and so the order of tokens, are left.
Restart ==
  /\ Restarts
  /\ hold' = [p \in Replicas |-> Free] /\ live' = {} /\ rep' = [p \in Replicas |-> Nothing]
  /\ IF R("restartunclean") THEN clean' = Nothing /\ ctok' = 0 ELSE UNCHANGED <<clean, ctok>>
  /\ isr' = IF R("durableset") THEN isr ELSE Replicas
  /\ tok' = IF R("epoch") THEN tok ELSE 0
  /\ UNCHANGED <<disk, cl, F, fm, told, seen, bad>>

\* Without a rule: a wiped data directory is still taken for the replica that it was.
Wipe(p) ==
  /\ ~R("newid") /\ p \notin live
  /\ log' = [log EXCEPT ![p] = <<>>] /\ prom' = [prom EXCEPT ![p] = 0] /\ conf' = [conf EXCEPT ![p] = 0]
  /\ cl' = [cl EXCEPT ![p] = Idle] /\ seen' = [seen EXCEPT ![p] = 0]
  /\ UNCHANGED <<lockd, F, fm, told, bad>>

----------------------------------------------------------------------------------------------------------------
(* Replicas *)

\* A push of token t can reach q.
Reaches(t, q) == F[t] # {} /\ cl[q].t # t

\* A push of token t tells of the token, but its ops do not meet ours, or are lost in a crash: it is promised alone.
Promise(q, t) ==
  /\ Reaches(t, q) /\ t > prom[q]
  /\ seen' = [seen EXCEPT ![q] = Max(@, t)]
  /\ prom' = IF R("promise") THEN [prom EXCEPT ![q] = t] ELSE prom
  /\ conf' = IF R("follows") THEN conf ELSE [conf EXCEPT ![q] = t]
  /\ UNCHANGED <<lockd, log, cl, F, fm, told, bad>>

\* What a replica's log becomes by the log m under token t; the log itself where it takes nothing.
Taken(q, t, m) ==
  IF IF t <= conf[q] THEN R("adds") ELSE ~R("replace")
  THEN IF Prefix(log[q], m) THEN m ELSE log[q]
  ELSE m

\* A push of token t is taken in, with what was fetched before it.
Take(q, t) ==
  /\ Reaches(t, q)
  /\ R("fence") => t >= prom[q]
  /\ \E m \in F[t] :
       LET ack == m = Newest(t) /\ (t <= conf[q] /\ R("adds") => Prefix(log[q], m) \/ Prefix(m, log[q])) IN
       /\ log' = [log EXCEPT ![q] = Taken(q, t, m)]
       /\ cl' = [p \in Replicas |->
                  IF ack /\ cl[p].t = t /\ cl[p].st \in {"settling", "pushed"}
                  THEN [cl[p] EXCEPT !.acks = @ \cup {q}] ELSE cl[p]]
  /\ prom' = [prom EXCEPT ![q] = Max(@, t)] /\ conf' = [conf EXCEPT ![q] = t]
  /\ seen' = [seen EXCEPT ![q] = Max(@, t)]
  /\ bad' = IF t < seen[q] THEN bad \cup {"old"} ELSE bad
  /\ UNCHANGED <<lockd, F, fm, told>>

\* An answer that is dropped whenever it comes.
Stale(q) == Len(fm[q]) = 4 /\ fm[q][2] < prom[q]

\* q fetches: a learner from a member, or whoever lacks what is before a push from its sender, who follows its token or
\* a newer one. The request names what q has; it may come at any later time. q waits for no older answer any more.
Ask(q, s) ==
  /\ q # s
  /\ fm[q] # Nothing \/ Cardinality({r \in Replicas : fm[r] # Nothing /\ ~Stale(r)}) < Fetches
  /\ \/ q \in live \ isr /\ s \in live \cap isr
     \/ \E t \in Toks : /\ prom[q] <= t /\ t <= conf[s]
                        /\ \E m \in F[t] : ~Prefix(SelectSeq(m, LAMBDA op : op # t), log[q])
  /\ fm' = [fm EXCEPT ![q] = <<s, log[q]>>]
  /\ UNCHANGED <<lockd, disk, cl, F, told, seen, bad>>

\* s answers, perhaps with the beginning alone: the log up to there, the token, whether more follows, and who answers.
\* The message leaves out what both have: up to the head named in the request, or to some version before it.
Answer(q) ==
  LET s == fm[q][1]
      all == Len(log[s])
      base == IF Prefix(fm[q][2], log[s]) THEN Len(fm[q][2]) ELSE 0 IN
  /\ Len(fm[q]) = 2
  /\ \E k \in (IF Parts THEN base + 1 ELSE all)..all \cup {all} :
       fm' = [fm EXCEPT ![q] = <<SubSeq(log[s], 1, k), IF R("fetchfollows") THEN conf[s] ELSE prom[s], k < all, s>>]
  /\ UNCHANGED <<lockd, disk, cl, F, told, seen, bad>>

\* A whole answer is taken in like a push of the token that its source follows; a part like a push of its last op's
\* token, if that is newer than what q follows, or the same and the part only goes on at the head. Any other part waits
\* for the rest. That changes nothing: with the rest it is an answer of that later moment which leaves out less. So it
\* is not kept. After each part q asks for more.
Fetched(q) ==
  LET m == fm[q][1]  from == fm[q][2]  more == fm[q][3]
      last == IF more THEN m[Len(m)] ELSE from
      t == IF R("parttoken") THEN last ELSE from
      goeson == Prefix(log[q], m) /\ m # log[q]
      waits == more /\ R("partwaits") /\ last <= conf[q] /\ (~goeson \/ (last < conf[q] /\ R("partrises")))
      fenced == from < prom[q] /\ R("fetchfence") IN
  /\ Len(fm[q]) = 4
  /\ IF ~R("fetchtoken") THEN log' = [log EXCEPT ![q] = m] /\ UNCHANGED <<prom, conf, seen, bad>>
     ELSE IF fenced \/ waits THEN UNCHANGED <<disk, seen, bad>>
     ELSE /\ log' = [log EXCEPT ![q] = Taken(q, from, m)]
          /\ prom' = [prom EXCEPT ![q] = Max(@, t)] /\ conf' = [conf EXCEPT ![q] = t]
          /\ seen' = [seen EXCEPT ![q] = Max(@, t)]
          /\ bad' = bad \cup (IF from < seen[q] THEN {"old"} ELSE {}) \cup (IF t < conf[q] THEN {"fell"} ELSE {})
  /\ fm' = [fm EXCEPT ![q] = IF more /\ ~fenced THEN <<fm[q][4], log'[q]>> ELSE Nothing]
  /\ UNCHANGED <<lockd, cl, F, told>>

\* lockd takes in a learner's report, or the heads in its Hello. It may be old when lockd acts on it.
Report(q) ==
  /\ q \in live \ isr /\ rep' = [rep EXCEPT ![q] = <<log[q], conf[q]>>]
  /\ UNCHANGED <<tok, isr, live, hold, clean, ctok, disk, cl, F, fm, told, seen, bad>>

Admit(q) ==
  /\ q \in live \ isr /\ rep[q] # Nothing /\ clean # Nothing
  /\ R("admitfree") => \A p \in Replicas : hold[p] = Free
  /\ R("admithead") => rep[q][1] = clean
  /\ R("admittoken") => rep[q][2] >= ctok
  /\ isr' = isr \cup {q} /\ rep' = [rep EXCEPT ![q] = Nothing]
  /\ UNCHANGED <<tok, live, hold, clean, ctok, disk, cl, F, fm, told, seen, bad>>

\* lockd forgets a file of which nothing is known, and makes it anew when somebody asks for it.
Forget ==
  /\ clean = <<>> /\ live # {} /\ \A p \in Replicas : hold[p] = Free
  /\ R("forgetnew") => ctok = 0
  /\ isr' = live /\ ctok' = 0
  /\ UNCHANGED <<tok, live, hold, clean, rep, disk, cl, F, fm, told, seen, bad>>

----------------------------------------------------------------------------------------------------------------

Next ==
  \/ Restart \/ Forget
  \/ \E p \in Replicas :
       \/ Grant(p, "X") \/ (Reading /\ Grant(p, "S")) \/ Settle(p) \/ Change(p) \/ Read(p) \/ Acknowledge(p)
       \/ Release(p) \/ GiveUnconfirmed(p) \/ EndSession(p) \/ Hello(p) \/ Wipe(p)
       \/ Answer(p) \/ Fetched(p) \/ Report(p) \/ Admit(p)
  \/ \E p, q \in Replicas : Drop(p, q) \/ Ask(p, q)
  \/ \E q \in Replicas, t \in Toks : Promise(q, t) \/ Take(q, t)

Spec == Init /\ [][Next]_vars

\* States that differ only in what can never matter again are one: pushes that everybody refuses, answers that their
\* asker does, reports that are too old for every admission to come.
OldestAdmitted ==
  IF clean # Nothing THEN ctok
  ELSE IF Holders("X") # {} THEN CHOOSE t \in {hold[p].t : p \in Holders("X")} : TRUE ELSE tok + 1
View ==
  <<tok, isr, live, hold, clean, ctok,
    IF R("admittoken") /\ R("alone") /\ R("epoch")
    THEN [q \in Replicas |-> IF rep[q] # Nothing /\ rep[q][2] < OldestAdmitted THEN Nothing ELSE rep[q]] ELSE rep,
    disk, cl,
    IF R("fence") /\ R("promise") /\ R("newid") /\ R("recheck")
    THEN [t \in Toks |->
      IF \A q \in Replicas : prom[q] > t /\ cl[q].t # t THEN {}
      ELSE IF F[t] # {} /\ R("adds") /\ \A q \in Replicas : prom[q] > t \/ conf[q] = t THEN {Newest(t)}
      ELSE F[t]]
    ELSE F,
    IF R("fetchtoken") /\ R("fetchfence") /\ R("newid") /\ R("recheck")
    THEN [q \in Replicas |-> IF Stale(q) THEN Nothing ELSE fm[q]] ELSE fm,
    told, seen, bad>>

----------------------------------------------------------------------------------------------------------------
(* What must hold *)

\* Every member of the in-sync set has all that was acknowledged.
NothingLost == \A r \in isr : Prefix(acked, log[r])
\* What a read gave out is there to stay.
NoDirtyRead == \A r \in isr : Prefix(reads, log[r])
\* A read gives all that was acknowledged, or given out, before it.
NoStaleRead == "stale" \notin bad
\* What is told to different clients is one history; the same version is the same history.
NoFork ==
  /\ "fork" \notin bad
  /\ \A p, q \in Replicas : \A i \in 1..Max(Len(log[p]), Len(log[q])) :
       i <= Len(log[p]) /\ i <= Len(log[q]) /\ log[p][i] = log[q][i] => SubSeq(log[p], 1, i) = SubSeq(log[q], 1, i)
\* Where a file is clean and nobody may change it, the whole set is at that version.
CleanMeans == clean # Nothing /\ Holders("X") = {} => \A r \in isr : log[r] = clean
\* Who may change a file is alone, and what is in a history came in the order of the tokens.
Exclusion ==
  /\ Holders("X") # {} => Cardinality(Holders("X") \cup Holders("S")) = 1
  /\ \A p \in Replicas : \A i \in 1..Len(log[p]) : i > 1 => log[p][i - 1] < log[p][i]
\* No replica takes in anything under a smaller token than one it has met.
NoOldToken == "old" \notin bad
\* The token that a replica follows only rises.
TokensRise == "fell" \notin bad
\* What follows a token is what its holder has pushed: so a fetched answer is a late push.
FollowsMeans == \A q \in Replicas : conf[q] # 0 => log[q] \in F[conf[q]]
====
