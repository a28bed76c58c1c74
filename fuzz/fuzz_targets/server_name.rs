//! The host name in a ClientHello, however it is cut into records.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podgres::proxy::fuzz_server_name(bytes));
