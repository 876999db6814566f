//! Any text as a model's manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| pawlatch_fuzz::manifest(text));
