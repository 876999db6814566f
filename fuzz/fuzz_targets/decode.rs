//! Any numbers as the outputs of a detector.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<u32>)| pawlatch_fuzz::detections(input.0, &input.1));
