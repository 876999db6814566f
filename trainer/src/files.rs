//! Writing files so that a crash or a full disk never leaves half of one.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Replaces a file in one step: after a crash there is the old one or the new one. Its permissions
/// are those of any new file, as the umask has them.
///
/// # Errors
/// If it cannot be written, for instance because the disk is full; the old file is untouched.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = (|| {
        // Temporary files are private unless told otherwise; a model is read by another user.
        let open = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(open).tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    written.with_context(|| {
        format!("cannot write {}; what was there before is untouched", path.display())
    })
}

/// Where a training keeps what it would not like to do twice.
#[derive(Clone, Debug)]
pub struct Work {
    /// Activations and views; trainings that differ in their recipes only share them.
    pub cache_dir: PathBuf,
    /// Checkpoints and history of this training.
    pub run_dir: PathBuf,
}

impl Work {
    /// Everything in one directory.
    pub fn at(dir: &Path) -> Self {
        Self { cache_dir: dir.join("cache"), run_dir: dir.into() }
    }

    /// One training of a sweep, told from the others by what was changed for it.
    pub fn of_point(&self, changed: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let readable: String = changed.chars().map(plain).take(100).collect();
        let hash = pawlatch_core::vision::sha256(changed.as_bytes());
        let run_dir = self.run_dir.join("sweep").join(format!("{readable}-{}", &hash[..8]));
        Self { cache_dir: self.cache_dir.clone(), run_dir }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_permissions_of_any_new_file_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (usual, ours) = (dir.path().join("usual"), dir.path().join("ours"));
        std::fs::write(&usual, b"x").unwrap();
        write_whole(&ours, b"old").unwrap();
        write_whole(&ours, b"new").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&usual));
        assert_eq!(std::fs::read(&ours).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
