//! The demo: a StatefulSet controller, kubelet and DNS server for pods that are processes of one machine.

pub mod dns;
