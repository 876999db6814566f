//! What must hold of any input. libFuzzer searches for one that breaks it (`cargo xtask fuzz`); the
//! project's tests try damaged seeds.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::LazyLock;

use pawlatch::config::Config;
use pawlatch_core::frame::{Frame, PictureWatch};
use pawlatch_core::units::Uptime;
use pawlatch_core::vision::Manifest;
use pawlatch_core::vision::decode::{MAX_DETECTIONS, decode};

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("pawlatch-fuzz-{}", std::process::id())));

/// Any text is a configuration or an error that names the file.
pub fn configuration(text: &str) {
    std::fs::write(&*FILE, text).expect("the file can be written");
    let name = FILE.display().to_string();
    if let Err(error) = Config::load_with(Some(&FILE), []) {
        // What is at odds only with the defaults names those.
        let told = error.to_string();
        assert!(told.contains(&name) || told.contains("default"), "{told}");
    }
}

/// Any text is a manifest or an error, and a manifest survives writing and reading.
pub fn manifest(text: &str) {
    if let Ok(manifest) = Manifest::parse(text) {
        let written = manifest.to_toml().expect("a sound manifest can be written");
        assert_eq!(Manifest::parse(&written).expect("and read again"), manifest);
        manifest.labels.class_of_each().expect("its labels were checked");
    }
}

/// Any bytes are a picture or an error, and a picture keeps its promises.
pub fn picture(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes, Uptime::ZERO) {
        let expected = frame.width() as usize * frame.height() as usize * 3;
        assert_eq!(frame.pixels().len(), expected);
        PictureWatch::default().judge(&frame);
    }
}

static MANIFESTS: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
    [
        "family = 'yolox'\nname = 'out'\nstrides = [8, 16]\nnms_iou = 0.5",
        "family = 'nanodet_plus'\nname = 'out'\nstrides = [8, 16]\nnms_iou = 0.5",
        "family = 'deim'\nlabels = 'l'\nboxes = 'b'\nscores = 's'",
        "family = 'pawlatch'\nnames = ['p8']\nstrides = [8]\nnms_iou = 0.5",
    ]
    .iter()
    .map(|output| {
        let zeros = "0".repeat(64);
        let text = format!(
            "manifest = 1\nname = 'fuzz'\nversion = '1'\ntask = 'detector'\nfile = 'f.onnx'\n\
             sha256 = '{zeros}'\nlicence = 'CC0-1.0'\nsource = 'none'\n\
             input.name = 'i'\ninput.shape = [1, 3, 32, 32]\ninput.layout = 'nchw'\n\
             input.colour = 'rgb'\ninput.mean = [0.0, 0.0, 0.0]\ninput.std = [1.0, 1.0, 1.0]\n\
             input.resize.mode = 'stretch'\ninput.kernel = 'bilinear'\n[output]\n{output}\n\
             [labels]\nrest = 'nothing'\nclasses.dog = ['dog']\nnames = ['dog', 'cat']\n"
        );
        Manifest::parse(&text).expect("the manifest is sound")
    })
    .collect()
});

/// Any numbers a detector of any family may give, as bits, are boxes of known labels, and not too
/// many of them.
pub fn detections(family: u8, bits: &[u32]) {
    let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
    let manifest = &MANIFESTS[usize::from(family) % MANIFESTS.len()];
    let parts = manifest.output.names().len();
    let outputs: Vec<Cow<'_, [f32]>> =
        values.chunks(values.len().div_ceil(parts).max(1)).take(parts).map(Cow::Borrowed).collect();
    if let Ok(found) = decode(manifest, manifest.thresholds.score_floor, &outputs) {
        assert!(found.len() <= MAX_DETECTIONS);
        assert!(found.iter().all(|f| f.label < manifest.labels.names.len()));
    }
}
