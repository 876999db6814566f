//! What the owner wants beyond a restart: whether the door is held locked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const LOCKED: &str = "held locked\n";
const RULES: &str = "by the rules\n";

/// Whether the owner wanted the door held locked. No file: no. Anything that cannot be read or
/// understood: yes, since a wish to lock may have been lost.
pub fn load(path: &Path) -> bool {
    match fs::read_to_string(path) {
        Ok(text) => text != RULES,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Keeps the wish, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, hold_locked: bool) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(if hold_locked { LOCKED } else { RULES }.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_means_by_the_rules() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!load(&dir.path().join("intent")));
    }

    #[test]
    fn present_means_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        for wish in [true, false, true] {
            save(&path, wish).unwrap();
            assert_eq!(load(&path), wish);
        }
    }

    #[test]
    fn corrupt_means_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent");
        for bytes in [&b""[..], b"by the ru", b"\xff\xfe"] {
            fs::write(&path, bytes).unwrap();
            assert!(load(&path), "{bytes:?}");
        }
        assert!(load(dir.path()), "a directory");
    }
}
