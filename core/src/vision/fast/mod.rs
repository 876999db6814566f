//! Our own operators for tract.
//!
//! [`optimise`] turns a loaded network into one that runs on hand-written kernels, several times
//! as fast as plain tract on a CPU. Anything it does not recognise stays as tract has it, and on a
//! CPU without kernels everything does.
//!
//! ```text
//! into_typed ─▶ rules::recognise ─▶ declutter ─▶ rules::fuse ─▶ layout::into_blocks ─▶ optimise
//!               convolutions and                 activations,   kernels, channels
//!               poolings as windows              residuals      in blocks of 16
//! ```
//!
//! Where values' ranges are known and the CPU has dot products of bytes, 1x1 convolutions and what
//! lies between them can work on bytes ([`Arithmetic::Bytes`]).
//!
//! Kernels (`conv`, `depthwise`, `map`, `post`, `blocks`, `bytes`, `dot`, `byte_depthwise`) know no
//! tract type; `ops` and `byte_ops` wrap them and know no arithmetic; `rules` and `layout` know both
//! by name only. `unsafe` is confined to the kernels, `simd`, `parallel`, and the uninitialised
//! outputs in `ops` and `byte_ops`.
//!
//! Threads: the core starts none. Run the whole inference inside a rayon pool to use its threads;
//! outputs are the same, bit for bit, for any number of them.

mod blocks;
mod byte_depthwise;
mod byte_ops;
#[cfg(test)]
mod byte_tests;
mod bytes;
mod coded;
mod conv;
mod depthwise;
mod dot;
mod geometry;
#[cfg(test)]
mod kernel_tests;
mod layout;
mod map;
mod ops;
mod parallel;
mod peak;
mod planes;
mod post;
mod profile;
mod resize;
mod rules;
mod simd;
mod watch;
mod window;
#[cfg(test)]
mod zoo_tests;

use tract_onnx::prelude::*;

pub use coded::Ranges;
pub use dot::Dot;
pub use parallel::together;
pub use peak::multiply_adds;
pub use profile::{OpTime, profile};
pub use simd::Isa;
pub use watch::Watch;

/// A network ready to run, from one as loaded, with its input's fact set to a fixed shape.
///
/// Outputs agree with plain tract's within `1e-4 * max(1, |y|)`, `|y|` being the largest output.
///
/// # Errors
/// Those of tract's own optimisation.
pub fn optimise(model: InferenceModel) -> TractResult<TypedModel> {
    optimise_in(Arithmetic::Floats, model)
}

/// What a network computes with.
#[derive(Clone, Copy, Debug)]
pub enum Arithmetic<'a> {
    /// Floats alone.
    Floats,
    /// Bytes where these ranges allow it and this CPU can, else floats.
    Bytes(&'a Ranges),
}

/// [`optimise`] with other arithmetic. With bytes, outputs are near those of floats; how near
/// depends on the network.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_in(arithmetic: Arithmetic, model: InferenceModel) -> TractResult<TypedModel> {
    let Some(isa) = Isa::detect() else { return model.into_optimized() };
    match (arithmetic, Dot::of(isa)) {
        (Arithmetic::Bytes(ranges), Some(dot)) => optimise_to_bytes(dot, ranges, model),
        _ => optimise_for(isa, model),
    }
}

/// [`optimise`] for a given instruction set.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_for(isa: Isa, model: InferenceModel) -> TractResult<TypedModel> {
    let windows = windows(model)?;
    layout::into_blocks(isa, &windows, None)?.into_optimized()
}

/// [`optimise_in`] bytes for given dot products.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_to_bytes(
    dot: Dot,
    ranges: &Ranges,
    model: InferenceModel,
) -> TractResult<TypedModel> {
    let windows = windows(model)?;
    let coded = coded::Coded { dot, ranges, model: &windows };
    layout::into_blocks(dot.isa(), &windows, Some(coded))?.into_optimized()
}

/// `model` in planes, with what is recognised in it as [`window::Window`]s.
fn windows(model: InferenceModel) -> TractResult<TypedModel> {
    let mut model = model.into_typed()?;
    rules::recognise(&mut model)?;
    let mut model = model.into_decluttered()?;
    rules::fuse(&mut model)?;
    Ok(model)
}
