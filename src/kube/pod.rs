//! What others may see of a pod: its role as a label, and Events. Both opt-ins, both without any say in what podgres does.
