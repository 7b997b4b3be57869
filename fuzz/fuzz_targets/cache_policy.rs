#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sendfile2_fuzz::cache_policy::run(data));
