//! Any numbers a detector may give are boxes of known labels, and not too many of them.
#![no_main]

use std::borrow::Cow;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pawlatch_core::vision::Manifest;
use pawlatch_core::vision::decode::{MAX_DETECTIONS, decode};

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

fuzz_target!(|input: (u8, Vec<u32>)| {
    let (family, bits) = input;
    let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
    let manifest = &MANIFESTS[usize::from(family) % MANIFESTS.len()];
    let parts = manifest.output.names().len();
    let outputs: Vec<Cow<'_, [f32]>> = values
        .chunks(values.len().div_ceil(parts).max(1))
        .take(parts)
        .map(Cow::Borrowed)
        .collect();
    if let Ok(found) = decode(manifest, manifest.thresholds.score_floor, &outputs) {
        assert!(found.len() <= MAX_DETECTIONS);
        assert!(found.iter().all(|f| f.label < manifest.labels.names.len()));
    }
});
