//! What a balancer in front says of the client: PROXY protocol, versions 1 and 2.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podgres::proxy::fuzz_forwarded(bytes));
