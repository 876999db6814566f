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
//! Kernels (`conv`, `depthwise`, `map`, `post`, `blocks`) know no tract type; `ops` wraps them and
//! knows no arithmetic; `rules` and `layout` know both by name only. `unsafe` is confined to the
//! kernels, `simd`, `parallel`, and the one uninitialised output in `ops`.
//!
//! Threads: the core starts none. Run the whole inference inside a rayon pool to use its threads;
//! outputs are the same, bit for bit, for any number of them.

mod blocks;
mod conv;
mod depthwise;
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
mod window;
#[cfg(test)]
mod zoo_tests;

use tract_onnx::prelude::*;

pub use parallel::together;
pub use peak::multiply_adds;
pub use profile::{OpTime, profile};
pub use simd::Isa;

/// A network ready to run, from one as loaded, with its input's fact set to a fixed shape.
///
/// Outputs agree with plain tract's within `1e-4 * max(1, |y|)`, `|y|` being the largest output.
///
/// # Errors
/// Those of tract's own optimisation.
pub fn optimise(model: InferenceModel) -> TractResult<TypedModel> {
    match Isa::detect() {
        Some(isa) => optimise_for(isa, model),
        None => model.into_optimized(),
    }
}

/// [`optimise`] for a given instruction set.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_for(isa: Isa, model: InferenceModel) -> TractResult<TypedModel> {
    let mut model = model.into_typed()?;
    rules::recognise(&mut model)?;
    let mut model = model.into_decluttered()?;
    rules::fuse(&mut model)?;
    layout::into_blocks(isa, &model)?.into_optimized()
}
