//! Any text is a configuration or an error that names the file.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pawlatch::config::Config;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("pawlatch-fuzz-{}", std::process::id())));

fuzz_target!(|text: &str| {
    std::fs::write(&*FILE, text).expect("the file can be written");
    let name = FILE.display().to_string();
    if let Err(error) = Config::load_with(Some(&FILE), []) {
        // What is at odds only with the defaults names those.
        let told = error.to_string();
        assert!(told.contains(&name) || told.contains("default"), "{told}");
    }
});
