//! Activations at a cut of the network, computed once per picture and variant and kept on disk as
//! 16-bit floats: the frozen part never runs again, and data of any size streams from the file.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::f16;
use image::RgbImage;
use indicatif::ProgressBar;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use tract_onnx::prelude::*;

use crate::data::augment::{Augmentation, laid_on, resized};
use crate::data::{self, Item};
use crate::evaluate::door_class;
use crate::net::onnx::Precision;
use crate::net::{Array, Net};
use crate::workers;

/// Pixels to numbers: `(value - mean) / std` per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divides.
    pub std: [f32; 3],
}

impl Normalisation {
    /// A square picture as channel planes.
    pub fn planes(&self, picture: &RgbImage) -> Vec<f32> {
        let plane = |c: usize| {
            picture.pixels().map(move |p| (f32::from(p.0[c]) - self.mean[c]) / self.std[c])
        };
        plane(0).chain(plane(1)).chain(plane(2)).collect()
    }
}

/// A network that tract runs, for the parts that are not trained: on a CPU it is faster than burn.
pub struct Frozen {
    /// None where nothing is frozen: the input passes through.
    plan: Option<Arc<TypedRunnableModel>>,
    shape: [usize; 4],
}

impl Frozen {
    /// Prepares `net` for one picture of `side` pixels.
    ///
    /// # Errors
    /// If tract cannot run it.
    pub fn new(net: &Net, side: usize) -> Result<Self> {
        Self::shaped(net, &net.shape_at(side))
    }

    /// Prepares `net` for inputs of `shape`.
    ///
    /// # Errors
    /// If tract cannot run it.
    pub fn shaped(net: &Net, shape: &[usize]) -> Result<Self> {
        let shape = crate::train::batch_shape(shape, 1);
        if net.nodes.is_empty() {
            return Ok(Self { plan: None, shape });
        }
        let mut sized = net.clone();
        for (own, given) in sized.input_shape.iter_mut().zip(&shape) {
            *own = Some(*given);
        }
        let bytes = sized.encode(Precision::Single)?;
        let model = tract_onnx::onnx()
            .model_for_read(&mut bytes.as_slice())?
            .with_input_fact(0, f32::fact(shape).into())?;
        // The door's own convolutions: what is frozen takes the time it takes there.
        let model = pawlatch_core::vision::fast::optimise(model)?.into_runnable()?;
        Ok(Self { plan: Some(model), shape })
    }

    /// Prepares the network in a file as plain tract reads it, without a word of ours.
    ///
    /// # Errors
    /// If tract cannot run it on an input of `shape`.
    pub fn of_file(path: &Path, shape: &[usize]) -> Result<Self> {
        let shape = crate::train::batch_shape(shape, 1);
        let model = tract_onnx::onnx()
            .model_for_path(path)
            .with_context(|| format!("tract cannot read {}", path.display()))?
            .with_input_fact(0, f32::fact(shape).into())?
            .into_optimized()?
            .into_runnable()?;
        Ok(Self { plan: Some(model), shape })
    }

    /// All outputs for one input.
    ///
    /// # Errors
    /// If the input has another size.
    pub fn run(&self, input: &[f32]) -> Result<Vec<Array>> {
        let Some(plan) = &self.plan else {
            return Ok(vec![Array::new(self.shape, input.to_vec())?]);
        };
        let tensor = tract_ndarray::ArrayView::from_shape(self.shape, input)?.to_owned();
        let out = plan.run(tvec!(tensor.into_tensor().into()))?;
        out.iter()
            .map(|o| {
                let view = o.to_plain_array_view::<f32>()?;
                Array::new(view.shape(), view.iter().copied().collect())
            })
            .collect()
    }
}

/// The part of a picture that a classifier looks at when nothing is distorted: the middle square
/// of a whole picture, all of a crop.
pub fn plain_part(item: &Item, picture: &RgbImage, fraction: f32) -> Rect {
    if item.is_crop() {
        return item.part;
    }
    let (w, h) = (picture.width() as f32, picture.height() as f32);
    let side = w.min(h) * fraction;
    let (dx, dy) = ((w - side) / 2.0 / w, (h - side) / 2.0 / h);
    Rect::clipped(dx, dy, 1.0 - dx, 1.0 - dy).unwrap_or(Rect::WHOLE)
}

/// How pictures become cached activations.
pub struct Plan<'a> {
    /// The frozen part.
    pub front: &'a Net,
    /// Side of the input, pixels.
    pub side: usize,
    /// Pixels to numbers.
    pub normalisation: Normalisation,
    /// Distortions of every variant but the first, which is plain.
    pub augmentation: &'a Augmentation,
    /// Variants per picture.
    pub variants: usize,
    /// Seed of the distortions.
    pub seed: u64,
    /// Middle square of a whole picture, as a fraction of its shorter side.
    pub fraction: f32,
}

/// How any picture becomes activations.
pub struct View<'a> {
    /// The frozen part.
    pub front: &'a Net,
    /// Side of the input, pixels.
    pub side: usize,
    /// Pixels to numbers.
    pub normalisation: Normalisation,
}

/// Activations of many pictures in a file.
pub struct Cache {
    key: String,
    file: File,
    /// Shape of one picture's activations, batch of one first.
    pub shape: Vec<usize>,
    /// Variants of each picture.
    pub variants: usize,
    /// Pictures.
    pub len: usize,
}

impl Cache {
    /// Opens the cache of `items` in `dir`, or computes it. A cache of the same network, items,
    /// distortions and seed is used again; an unfinished one is finished.
    ///
    /// # Errors
    /// If a picture cannot be read, the disk is full, or the network cannot run.
    pub fn of(plan: &Plan<'_>, items: &[&Item], dir: &Path, bar: &ProgressBar) -> Result<Self> {
        let what = serde_json::to_vec(&(items, plan.augmentation, plan.seed, plan.fraction))?;
        let view = View { front: plan.front, side: plan.side, normalisation: plan.normalisation };
        let nothing = |item: &Item| matches!(door_class(&item.label), Ok(Class::Nothing));
        let empty: Vec<&Item> = items.iter().copied().filter(|item| nothing(item)).collect();
        let render = |i: usize, variant: usize, picture: &RgbImage| {
            let item = items[i];
            if variant == 0 {
                return resized(
                    picture,
                    plain_part(item, picture, plan.fraction),
                    plan.side as u32,
                );
            }
            let mut rng = StdRng::seed_from_u64(plan.seed ^ (i as u64) << 20 ^ variant as u64);
            let (side, how) = (plan.side as u32, plan.augmentation);
            let cut_out = how.paste > 0.0 && item.is_crop() && !nothing(item);
            if cut_out && !empty.is_empty() && rng.random::<f32>() < how.paste {
                let ground = empty[rng.random_range(0..empty.len())];
                let mut laid = resized(&data::open(&ground.file)?, ground.part, side)?;
                laid_on(&mut laid, picture, item.part, &mut rng)?;
                // A crop might leave the animal out.
                let how = Augmentation { smallest_crop: 1.0, ..how.clone() };
                return how.apply(&laid, Rect::WHOLE, side, &mut rng);
            }
            how.apply(picture, item.part, side, &mut rng)
        };
        let files: Vec<&Path> = items.iter().map(|i| i.file.as_path()).collect();
        Self::rendered(&view, &files, plan.variants, &what, &render, dir, bar)
    }

    /// The cache of any pictures in any variants: `render` makes variant `v` of picture `i` out of
    /// the file, and `what` tells caches apart that differ in it.
    ///
    /// # Errors
    /// As [`Cache::of`].
    pub fn rendered(
        view: &View<'_>,
        files: &[&Path],
        variants: usize,
        what: &[u8],
        render: &(dyn Fn(usize, usize, &RgbImage) -> Result<RgbImage> + Sync),
        dir: &Path,
        bar: &ProgressBar,
    ) -> Result<Self> {
        let shape =
            view.front.shapes(view.front.shape_at(view.side))?[&view.front.outputs[0]].clone();
        let size: usize = shape.iter().product();
        let mut hash = Sha256::new();
        hash.update(view.front.encode(Precision::Single)?);
        hash.update(serde_json::to_vec(&(files, variants, view.side))?);
        hash.update(format!("{:?}", view.normalisation));
        hash.update(what);
        let key = hex(&hash.finalize());
        let path = dir.join(format!("{key}.f16"));
        if !path.exists() {
            std::fs::create_dir_all(dir)?;
            let frozen = Frozen::new(view.front, view.side)?;
            bar.set_length((files.len() * variants) as u64);
            let row = |i: usize| {
                let picture = data::open(files[i])?;
                let mut out = Vec::with_capacity(variants * size * 2);
                for variant in 0..variants {
                    let seen = render(i, variant, &picture)?;
                    out.extend(halves(&frozen.run(&view.normalisation.planes(&seen))?)?);
                    bar.inc(1);
                }
                Ok(out)
            };
            fill(&path, files.len(), variants * size * 2, bar, &row)?;
        }
        Self::open(key, &path, shape, size, variants, files.len())
    }

    /// The cache of a later cut, computed from this one by `front`, the part in between; this
    /// cache itself if there is nothing in between.
    ///
    /// # Errors
    /// If the disk is full or the network cannot run.
    pub fn derive(&self, front: &Net, dir: &Path, bar: &ProgressBar) -> Result<Self> {
        let full = crate::train::batch_shape(&self.shape, 1);
        let mut front = front.clone();
        front.input_shape = full.map(Some);
        let shape = front.shapes(full)?[&front.outputs[0]].clone();
        let size: usize = shape.iter().product();
        let mut hash = Sha256::new();
        hash.update(self.key.as_bytes());
        hash.update(front.encode(Precision::Single)?);
        let key = hex(&hash.finalize());
        let path = dir.join(format!("{key}.f16"));
        if !path.exists() {
            let frozen = Frozen::shaped(&front, &self.shape)?;
            bar.set_length((self.len * self.variants) as u64);
            let row = |n: usize| -> Result<Vec<u8>> {
                let mut input = Vec::new();
                self.read(n / self.variants, n % self.variants, &mut input)?;
                bar.inc(1);
                halves(&frozen.run(&input)?)
            };
            fill(&path, self.len * self.variants, size * 2, bar, &row)?;
        }
        Self::open(key, &path, shape, size, self.variants, self.len)
    }

    fn open(
        key: String,
        path: &Path,
        shape: Vec<usize>,
        size: usize,
        variants: usize,
        len: usize,
    ) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let expected = (len * variants * size * 2) as u64;
        ensure!(file.metadata()?.len() == expected, "{} is damaged: delete it", path.display());
        Ok(Self { key, file, shape, variants, len })
    }

    /// Hash of everything the activations depend on.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Appends the activations of picture `i` in `variant` to `out`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, i: usize, variant: usize, out: &mut Vec<f32>) -> Result<()> {
        let size: usize = self.shape.iter().product();
        let mut bytes = vec![0; size * 2];
        self.file.read_exact_at(&mut bytes, ((i * self.variants + variant) * size * 2) as u64)?;
        out.extend(bytes.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()));
        Ok(())
    }
}

/// Writes `count` rows of `size` bytes, computed in parallel, into a file that gets its name only
/// when it is whole. What an earlier run that was stopped has written is kept.
fn fill(
    path: &Path,
    count: usize,
    size: usize,
    bar: &ProgressBar,
    row: &(dyn Fn(usize) -> Result<Vec<u8>> + Sync),
) -> Result<()> {
    let part = path.with_extension("part");
    let written = (|| -> Result<()> {
        let mut file = File::options().create(true).append(true).open(&part)?;
        let done = usize::try_from(file.metadata()?.len())? / size;
        file.set_len((done * size) as u64)?;
        bar.inc((done * (bar.length().unwrap_or(0) as usize / count.max(1))) as u64);
        for start in (done..count).step_by(32) {
            let end = count.min(start + 32);
            let rows = workers::each(end - start, &|| Ok(()), &|(), i| row(start + i))?;
            file.write_all(&rows.concat())?;
            // A row counts as done only once it would survive a power cut.
            file.sync_data()?;
        }
        std::fs::rename(&part, path)?;
        Ok(())
    })();
    written.with_context(|| format!("cannot fill the feature cache {}", part.display()))
}

/// The first output as 16-bit floats.
fn halves(outputs: &[Array]) -> Result<Vec<u8>> {
    let values = &outputs.first().context("the network has no output")?.data;
    Ok(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect())
}

/// The first twelve bytes of a hash, for the name of a file.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().take(12).map(|b| format!("{b:02x}")).collect()
}
