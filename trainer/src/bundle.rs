//! One file that carries a model to a door, as docs/updates.md describes it: `bundle.toml` with the
//! size and SHA-256 of each file, its signature where there is one, then the files.
//!
//! The signature is the owner's own step, with the owner's own key: it is of `bundle.toml`, which
//! is written beside the model and left as it is while nothing changes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use pawlatch_core::vision::sha256;
use serde::Serialize;

use crate::evaluate::load_model;
use crate::files::write_whole;

/// Version of the format.
const FORMAT: u32 = 1;
const MANIFEST_FILE: &str = "bundle.toml";
const SIGNATURE_FILE: &str = "bundle.toml.minisig";
/// What goes along if it is there.
const COMPANIONS: [&str; 2] = ["README.md", "report.html"];

#[derive(Serialize)]
struct Bundle {
    bundle: u32,
    kind: &'static str,
    name: String,
    version: String,
    files: Vec<FileLine>,
}

#[derive(Serialize)]
struct FileLine {
    name: String,
    bytes: usize,
    sha256: String,
}

/// What was packed.
pub struct Packed {
    /// SHA-256 of the bundle, by which a door can be told to believe it.
    pub sha256: String,
    /// Whether it carries a signature.
    pub signed: bool,
}

/// Packs the model directory `dir` into the bundle `out`, the same bytes every time. A signature of
/// `bundle.toml` that is there already goes along, unless the model has changed since: then it is
/// removed.
///
/// # Errors
/// If the model is not what its manifest says, its version is not made of numbers, or a file cannot
/// be read or written.
pub fn pack(dir: &Path, out: &Path) -> Result<Packed> {
    // Read as the door reads it: what it would refuse is not packed.
    let manifest = load_model(dir)?.manifest;
    let mut names = vec!["model.toml".to_owned(), manifest.file.clone()];
    names.extend(COMPANIONS.into_iter().filter(|n| dir.join(n).is_file()).map(String::from));
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let files = names.iter().map(|n| Ok((n.clone(), read(n)?))).collect::<Result<Vec<_>>>()?;
    let line = |(name, bytes): &(String, Vec<u8>)| FileLine {
        name: name.clone(),
        bytes: bytes.len(),
        sha256: sha256(bytes),
    };
    let text = toml::to_string(&Bundle {
        bundle: FORMAT,
        kind: "model",
        name: manifest.name.clone(),
        version: comparable(&manifest.version)?,
        files: files.iter().map(line).collect(),
    })?;
    let (text_path, signature_path) = (dir.join(MANIFEST_FILE), dir.join(SIGNATURE_FILE));
    if std::fs::read_to_string(&text_path).ok().as_ref() != Some(&text) {
        if signature_path.exists() {
            std::fs::remove_file(&signature_path)
                .with_context(|| format!("cannot remove {}", signature_path.display()))?;
        }
        write_whole(&text_path, text.as_bytes())?;
    }
    let mut members = vec![(MANIFEST_FILE.to_owned(), text.into_bytes())];
    let signed = signature_path.exists();
    if signed {
        members.push((SIGNATURE_FILE.to_owned(), read(SIGNATURE_FILE)?));
    }
    members.extend(files);
    let bytes = archive(&members).context("cannot pack the bundle")?;
    write_whole(out, &bytes)?;
    Ok(Packed { sha256: sha256(&bytes), signed })
}

/// A version as the door compares it: three numbers, later ones 0 if absent.
fn comparable(version: &str) -> Result<String> {
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let numbers: Vec<u32> =
        version.split('.').filter(|p| digits(p)).filter_map(|p| p.parse().ok()).collect();
    ensure!(
        numbers.len() == version.split('.').count() && numbers.len() <= 3,
        "the model's version is '{version}'; a bundle needs numbers such as 1.4.0, since a door \
         refuses older ones"
    );
    let at = |i| numbers.get(i).copied().unwrap_or(0_u32);
    Ok(format!("{}.{}.{}", at(0), at(1), at(2)))
}

fn archive(members: &[(String, Vec<u8>)]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_made_of_up_to_three_numbers() {
        assert_eq!(comparable("1").unwrap(), "1.0.0");
        assert_eq!(comparable("1.4.12").unwrap(), "1.4.12");
        for wrong in ["", "1.", "1.2.3.4", "v1", "1.+2", "1.2-rc1"] {
            assert!(comparable(wrong).is_err(), "{wrong}");
        }
    }
}
