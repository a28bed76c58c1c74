//! `podgres demo`: the whole cluster on this machine, and the verbs that play with it.
