//! Any text is a manifest or an error, and a manifest survives writing and reading.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pawlatch_core::vision::Manifest;

fuzz_target!(|text: &str| {
    if let Ok(manifest) = Manifest::parse(text) {
        let written = manifest.to_toml().expect("a sound manifest can be written");
        assert_eq!(Manifest::parse(&written).expect("and read again"), manifest);
        manifest.labels.class_of_each().expect("its labels were checked");
    }
});
