//! The first packet of a client: startup and its options, requests for encryption, cancel requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podgres::proxy::startup::fuzz_startup(bytes));
