//! What review would have to remember: who may depend on whom, and what may not be in the tree.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below `dir` whose name ends in one of `endings`; build output and fetched corpora
/// excepted.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() {
            if !["target", ".git", "corpus", "artifacts", "node_modules"].contains(&&*name) {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn packages_depend_only_on_whom_they_may() {
    let ours = [
        "pawlatch-core",
        "pawlatch",
        "pawlatch-trainer",
        "pawlatch-tests",
        "pawlatch-fuzz",
        "xtask",
    ];
    let may: [(&str, &[&str]); 6] = [
        ("core", &[]),
        ("daemon", &["pawlatch-core"]),
        ("trainer", &["pawlatch-core"]),
        ("tests", &["pawlatch-core", "pawlatch"]),
        ("fuzz", &["pawlatch-core", "pawlatch"]),
        ("xtask", &[]),
    ];
    for (dir, allowed) in may {
        let Ok(text) = fs::read_to_string(root().join(dir).join("Cargo.toml")) else { continue };
        let manifest: toml::Table = text.parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(section) = manifest.get(section).and_then(|s| s.as_table()) else { continue };
            for name in section.keys().filter(|n| ours.contains(&n.as_str())) {
                assert!(allowed.contains(&name.as_str()), "{dir} may not depend on {name}");
            }
        }
    }
}

#[test]
fn the_core_stays_pure() {
    let forbidden = [
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "std::process",
        "SystemTime",
        "Instant::now",
        "Timestamp::now",
        "HashMap",
        "HashSet",
        "println!",
        "eprintln!",
    ];
    for path in files(&root().join("core/src"), &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        if path.file_name().unwrap().to_str().unwrap().contains("test") {
            continue;
        }
        // Of threads, the kernels may only let others have the core, and ask whether they fail.
        let code =
            code.replace("std::thread::yield_now()", "").replace("std::thread::panicking()", "");
        for word in forbidden {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn the_door_knows_nothing_of_the_networks() {
    let mut checked = 0;
    for name in ["door.rs", "door/look.rs", "door/act.rs", "policy.rs", "track.rs", "keeper.rs"] {
        let text = fs::read_to_string(root().join("core/src").join(name)).unwrap();
        assert!(!text.contains("crate::vision"), "{name} imports vision");
        checked += 1;
    }
    assert_eq!(checked, 6);
}

#[test]
fn only_vision_names_tract() {
    for path in files(&root().join("core/src"), &[".rs"]) {
        let inside = path.components().any(|c| c.as_os_str() == "vision");
        let text = fs::read_to_string(&path).unwrap();
        assert!(inside || !text.contains("tract_"), "{} names tract", path.display());
    }
}

#[test]
fn files_are_short_enough_to_be_read() {
    let mut long = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > 700 {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "split these: {long:#?}");
}

#[test]
fn no_path_of_one_machine_is_in_the_tree() {
    for path in files(&root(), &[".rs", ".toml", ".md", ".sh", ".py", ".service"]) {
        let text = fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            // A directory of that name below a variable is nobody's home.
            let line = ["$W/root/", "\"$W\"/root/", "$K/root/"]
                .iter()
                .fold(line.to_owned(), |line, below| line.replace(below, ""));
            let local = ["/work/", "/home/user", "/root/"].iter().any(|p| line.contains(p));
            assert!(!local || path.ends_with("tidy.rs"), "{}:{}", path.display(), n + 1);
        }
    }
}
