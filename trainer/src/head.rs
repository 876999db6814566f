//! What a retraining starts from, and what becomes of its last layer: made anew, or kept.
//!
//! A network that was taught a thousand labels knows foxes from dogs better than a few thousand
//! photos can teach it. Kept, its labels are read as the classes of its manifest, and training
//! moves them a little instead of starting over.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pawlatch_core::sight::Class;
use pawlatch_core::vision::Manifest;
use pawlatch_core::vision::manifest::{ClassLabels, LabelSet, Labels};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::evaluate::door_class;
use crate::net::Net;
use crate::net::zoo::standard_normal;

/// Spread of an added label's weights round the mean of its class's.
const SPREAD: f32 = 0.02;

/// The network a retraining starts from.
#[derive(Clone, Debug)]
pub struct Base {
    /// The network.
    pub net: Net,
    /// What a model directory says of it; a bare ONNX says nothing.
    pub manifest: Option<Manifest>,
}

/// What becomes of the last layer, as a plan describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Head {
    /// The base's labels are kept and read as the classes of its manifest. Otherwise the layer is
    /// made anew, with one label for each class.
    pub keep: bool,
    /// Labels added to a class, each starting near the mean of the class's own. Only with `keep`.
    pub added: BTreeMap<String, usize>,
}

/// A network whose head is ready to be trained.
#[derive(Clone, Debug)]
pub struct Headed {
    /// The network.
    pub net: Net,
    /// Names of its labels, and what they mean to the door.
    pub labels: Labels,
    /// For each label the number of its class in the dataset.
    pub class_of_label: Vec<usize>,
}

impl Base {
    /// Reads an ONNX, or a model directory of the door.
    ///
    /// # Errors
    /// If it cannot be read, or the ONNX is not the one the manifest is about.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { net: Net::load(path)?, manifest: None });
        }
        let model = crate::evaluate::load_model(path)?;
        let net = Net::load(&path.join(&model.manifest.file))?;
        Ok(Self { net, manifest: Some(model.manifest) })
    }

    /// Makes the head ready for `classes`.
    ///
    /// # Errors
    /// If a kept label means a class that `classes` lacks, there is no manifest to say what labels
    /// mean, or the network does not end in a dense layer.
    pub fn headed(&self, classes: &[String], head: &Head, seed: u64) -> Result<Headed> {
        if head.keep {
            return self.kept(classes, head, seed);
        }
        ensure!(head.added.is_empty(), "`added` labels need `keep = true`");
        let mut meanings = ClassLabels::default();
        for label in classes {
            meaning(&mut meanings, door_class(label)?).push(LabelSet::Name(label.clone()));
        }
        Ok(Headed {
            net: self.net.clone().swap_head(classes.len(), seed)?,
            labels: Labels { rest: Class::Other, classes: meanings, names: classes.to_vec() },
            class_of_label: (0..classes.len()).collect(),
        })
    }

    fn kept(&self, classes: &[String], head: &Head, seed: u64) -> Result<Headed> {
        let manifest = self.manifest.as_ref().context(
            "to keep the head, --base must be a model directory: its manifest says what the labels mean",
        )?;
        let mut labels = manifest.labels.clone();
        let mut class_of_label = Vec::new();
        for class in labels.class_of_each()? {
            let at = classes.iter().position(|c| c == class.name()).with_context(|| {
                format!("the base knows '{class}', which the dataset's classes lack: add it")
            })?;
            class_of_label.push(at);
        }
        let mut net = self.calibrated(&class_of_label, classes)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows = Vec::new();
        for (name, &count) in &head.added {
            let class = classes
                .iter()
                .position(|c| c == name)
                .with_context(|| format!("`added` names '{name}', which is no class"))?;
            let (mean, bias) =
                mean_row(&net, &class_of_label[..manifest.labels.names.len()], class)?;
            let first = labels.names.len();
            for _ in 0..count {
                let row = mean.iter().map(|w| w + SPREAD * standard_normal(&mut rng)).collect();
                rows.push((row, bias));
                labels.names.push(in_words(door_class(name)?).to_owned());
                class_of_label.push(class);
            }
            if count > 0 {
                meaning(&mut labels.classes, door_class(name)?)
                    .push(LabelSet::Range([first, first + count - 1]));
            }
        }
        net = net.grow_head(&rows)?;
        Ok(Headed { net, labels, class_of_label })
    }

    /// The network with the manifest's calibration worked into its last layer, so that training
    /// starts from what the model says, not from what the bare network does.
    fn calibrated(&self, class_of_label: &[usize], classes: &[String]) -> Result<Net> {
        // Zero rows give the layer a bias if it has none.
        let mut net = self.net.clone().grow_head(&[])?;
        let Some(calibration) = self.manifest.as_ref().and_then(|m| m.calibration.as_ref()) else {
            return Ok(net);
        };
        let of_class = calibration.bias.to_array();
        let (at, weight) = net.last_dense()?;
        let bias = net.nodes[at].inputs[2].clone();
        let scaled = |net: &mut Net, name: &str| -> Result<()> {
            let array = net.params.get_mut(name).context("the head has no weights")?;
            array.data.iter_mut().for_each(|w| *w /= calibration.temperature);
            Ok(())
        };
        scaled(&mut net, &weight)?;
        scaled(&mut net, &bias)?;
        let offsets = net.params.get_mut(&bias).context("the head has no bias")?;
        for (offset, class) in offsets.data.iter_mut().zip(class_of_label) {
            *offset += of_class[door_class(&classes[*class])? as usize];
        }
        Ok(net)
    }
}

fn meaning(classes: &mut ClassLabels, class: Class) -> &mut Vec<LabelSet> {
    match class {
        Class::Dog => &mut classes.dog,
        Class::Cat => &mut classes.cat,
        Class::Person => &mut classes.person,
        Class::Other => &mut classes.other,
        Class::Nothing => &mut classes.nothing,
    }
}

/// Mean weights and mean bias of a class's labels.
fn mean_row(net: &Net, class_of_label: &[usize], class: usize) -> Result<(Vec<f32>, f32)> {
    let (at, weight) = net.last_dense()?;
    let (weight, bias) = (net.param(&weight)?, net.param(&net.nodes[at].inputs[2])?);
    let features = weight.shape[1];
    let own: Vec<usize> =
        (0..class_of_label.len()).filter(|l| class_of_label[*l] == class).collect();
    ensure!(!own.is_empty(), "the base has no label of class number {class} to add to");
    let mean =
        |of: &dyn Fn(usize) -> f32| own.iter().map(|&l| of(l)).sum::<f32>() / own.len() as f32;
    let row = (0..features).map(|k| mean(&|l| weight.data[l * features + k])).collect();
    Ok((row, mean(&|l| bias.data[l])))
}
/// An added label as people read it. No name of a class: whoever says `cat` means one label.
const fn in_words(class: Class) -> &'static str {
    match class {
        Class::Dog => "a dog",
        Class::Cat => "a cat",
        Class::Person => "a person",
        Class::Other => "another animal",
        Class::Nothing => "nothing there",
    }
}
