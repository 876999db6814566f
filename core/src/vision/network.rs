//! A network that can run: the one place that builds a runnable plan, and with [`super::onnx`]
//! and [`super::fast`] the only one that names tract.

use std::borrow::Cow;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use thiserror::Error;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;
use tract_onnx::tract_hir::infer::{DimFact, Factoid};

use super::fast::{self, Arithmetic, OpTime, Ranges, Watch};

/// Why a network cannot be loaded or run. The caller adds which model it was.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// Not ONNX.
    #[error("the file is not ONNX, or is damaged or cut short; fetch it again")]
    Parse(#[source] Box<dyn Error + Send + Sync>),
    /// ONNX whose parts do not fit.
    #[error("the ONNX graph is damaged: {0}")]
    Graph(String),
    /// The input is not as expected.
    #[error("its input is {got}, the manifest says {expected}")]
    Input {
        /// What the manifest says.
        expected: String,
        /// What the ONNX has.
        got: String,
    },
    /// An output is missing or has another shape.
    #[error("its output `{name}` is {got}, the manifest needs {expected}")]
    Output {
        /// The output.
        name: String,
        /// What the manifest needs.
        expected: String,
        /// What the ONNX has.
        got: String,
    },
    /// A form that the runtime does not know.
    #[error("the network cannot be prepared; is it exported with a known opset (9 to 18)?")]
    Prepare(#[source] Box<dyn Error + Send + Sync>),
    /// The runtime panicked over it.
    #[error("the network has a form that the runtime breaks on")]
    Broken,
    /// It stopped while running.
    #[error("the network failed while running")]
    Run(#[source] Box<dyn Error + Send + Sync>),
    /// Asked for a heat map of a network that has none.
    #[error(
        "it does not end in global average pooling and one linear layer, so it cannot say where \
         things are; use a detector beside it"
    )]
    NotConvolutional,
}

/// A network prepared for one size of input.
///
/// [`Network::fill`] its input, then [`Network::run`]. The input's memory is reused.
pub struct Network {
    plan: Arc<TypedRunnableModel>,
    input: Arc<Tensor>,
    outputs: Vec<(String, Vec<usize>)>,
    watch: Option<Watch>,
}

/// How a network is to be prepared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode<'a> {
    /// To run.
    With(Arithmetic<'a>),
    /// To run with floats and note the ranges of what could be bytes.
    Watched,
}

impl Network {
    /// Prepares `model` for the input `name` of f32 `[1, 3, height, width]`.
    ///
    /// # Errors
    /// If the input has another name or shape, an output's shape is not fixed by the input's, or
    /// tract does not know an operator.
    pub(super) fn load(
        model: &ModelProto,
        name: &str,
        shape: [usize; 4],
    ) -> Result<Self, NetworkError> {
        Self::load_in(Mode::With(Arithmetic::Floats), model, name, shape)
    }

    /// As [`Network::load`], prepared as `mode` says.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub(super) fn load_in(
        mode: Mode,
        model: &ModelProto,
        name: &str,
        shape: [usize; 4],
    ) -> Result<Self, NetworkError> {
        // tract panics on some malformed graphs; that is this file's fault, not the program's.
        catch_unwind(AssertUnwindSafe(|| Self::prepare(mode, model, name, shape)))
            .unwrap_or(Err(NetworkError::Broken))
    }

    fn prepare(
        mode: Mode,
        model: &ModelProto,
        name: &str,
        shape: [usize; 4],
    ) -> Result<Self, NetworkError> {
        let prepare = |e: TractError| NetworkError::Prepare(e.into());
        let inferred = tract_onnx::onnx().model_for_proto_model(model).map_err(prepare)?;
        check_input(&inferred, name, shape)?;
        let inferred = inferred.with_input_fact(0, f32::fact(shape).into()).map_err(prepare)?;
        let (typed, watch) = match mode {
            Mode::With(arithmetic) => fast::optimise_in(arithmetic, inferred).map(|m| (m, None)),
            Mode::Watched => Watch::over(inferred).map(|(m, watch)| (m, Some(watch))),
        }
        .map_err(prepare)?;
        let names = model.graph.iter().flat_map(|g| &g.output).map(|o| o.name.clone());
        let mut outputs = Vec::new();
        for (name, outlet) in names.zip(typed.outputs.iter()) {
            let fact = typed.outlet_fact(*outlet).map_err(prepare)?;
            let Some(shape) = fact.shape.as_concrete() else {
                return Err(NetworkError::Output {
                    name,
                    expected: "a shape fixed by the input's".into(),
                    got: format!("{:?}", fact.shape),
                });
            };
            outputs.push((name, shape.to_vec()));
        }
        let plan = typed.into_runnable().map_err(prepare)?;
        let input = Arc::new(Tensor::zero::<f32>(&shape).map_err(prepare)?);
        Ok(Self { plan, input, outputs, watch })
    }

    /// The outputs in the order of the ONNX: name and shape.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &self.outputs
    }

    /// Lets `write` fill the input: its values in the order batch, channel, row, column, as the
    /// last run left them.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn fill<T, E: From<NetworkError>>(
        &mut self,
        write: impl FnOnce(&mut [f32]) -> Result<T, E>,
    ) -> Result<T, E> {
        let run = |e: TractError| NetworkError::Run(e.into());
        // A plan lets go of its input when it has run; if it ever does not, a copy is made.
        let tensor = Arc::make_mut(&mut self.input);
        let mut plain = tensor.try_as_plain_ram_mut().map_err(run)?;
        write(plain.as_slice_mut::<f32>().map_err(run)?)
    }

    /// Runs the network on its input; inside a rayon pool with all of its threads.
    ///
    /// # Errors
    /// If an operator fails.
    pub fn run(&mut self) -> Result<Outputs, NetworkError> {
        let run = |e: TractError| NetworkError::Run(e.into());
        let input = Arc::clone(&self.input).into_tvalue();
        match &mut self.watch {
            Some(watch) => watch.run(&self.plan, tvec!(input)),
            None => fast::together(|| self.plan.run(tvec!(input))),
        }
        .map(Outputs)
        .map_err(run)
    }

    /// What was noted, if the network is watched.
    pub(super) fn ranges(&self) -> Option<&Ranges> {
        self.watch.as_ref().map(Watch::ranges)
    }
}

/// What a network gave.
pub struct Outputs(TVec<TValue>);

impl Outputs {
    /// The values of output `index`, row-major, as f32.
    ///
    /// # Errors
    /// If there is no such output, or its values are not numbers.
    pub fn floats(&self, index: usize) -> Result<Cow<'_, [f32]>, NetworkError> {
        let run = |e: TractError| NetworkError::Run(e.into());
        let tensor = self
            .0
            .get(index)
            .ok_or_else(|| run(TractError::msg(format!("there is no output {index}"))))?;
        let plain = tensor.try_as_plain_ram().map_err(run)?;
        match tensor.datum_type() {
            DatumType::F32 => Ok(Cow::Borrowed(plain.as_slice::<f32>().map_err(run)?)),
            DatumType::I64 => {
                let numbers = plain.as_slice::<i64>().map_err(run)?;
                Ok(Cow::Owned(numbers.iter().map(|v| *v as f32).collect()))
            }
            other => Err(run(TractError::msg(format!("output {index} holds {other:?}")))),
        }
    }
}

fn check_input(model: &InferenceModel, name: &str, shape: [usize; 4]) -> Result<(), NetworkError> {
    let wrong =
        |got: String| NetworkError::Input { expected: format!("`{name}` of shape {shape:?}"), got };
    let [outlet] = model.inputs[..] else {
        return Err(wrong(format!("{} tensors", model.inputs.len())));
    };
    let found = &model.node(outlet.node).name;
    let fact = model.outlet_fact(outlet).map_err(|e| NetworkError::Prepare(e.into()))?;
    let kind = fact.datum_type.concretize();
    let dims: Vec<Option<usize>> =
        fact.shape.dims().map(|d| d.concretize().and_then(|d| d.to_usize().ok())).collect();
    let fits = dims.len() == 4
        && dims.iter().zip(shape).all(|(has, wants)| has.is_none_or(|has| has == wants));
    if found == name && fits && kind.is_none_or(|k| k == f32::datum_type()) {
        return Ok(());
    }
    let dims: Vec<String> = dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
    let kind = kind.map_or(String::new(), |k| format!(" of {k:?}"));
    Err(wrong(format!("`{found}` of shape [{}]{kind}", dims.join(", "))))
}

type Optimise<'a> = &'a dyn Fn(InferenceModel) -> TractResult<TypedModel>;

/// A network by itself, for measuring: any inputs, as the file declares them.
pub struct Bare {
    plan: Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
}

impl Bare {
    /// Prepares the network in `onnx`. Sizes that the file leaves open are 1; inputs are filled
    /// with a fixed pattern.
    ///
    /// # Errors
    /// If it is not ONNX, does not say the type or number of axes of an input, or tract does not
    /// know an operator.
    pub fn open(onnx: &[u8]) -> Result<Self, NetworkError> {
        Self::open_in(Arithmetic::Floats, onnx)
    }

    /// As [`Bare::open`], with other arithmetic.
    ///
    /// # Errors
    /// As [`Bare::open`].
    pub fn open_in(arithmetic: Arithmetic, onnx: &[u8]) -> Result<Self, NetworkError> {
        Self::open_with(onnx, &|model| fast::optimise_in(arithmetic, model))
    }

    /// As [`Bare::open`], but on plain tract, to compare with.
    ///
    /// # Errors
    /// As [`Bare::open`].
    pub fn open_plain(onnx: &[u8]) -> Result<Self, NetworkError> {
        Self::open_with(onnx, &InferenceModel::into_optimized)
    }

    fn open_with(onnx: &[u8], optimise: Optimise) -> Result<Self, NetworkError> {
        let proto = super::onnx::read(onnx)?;
        catch_unwind(AssertUnwindSafe(|| Self::prepare(&proto, optimise)))
            .unwrap_or(Err(NetworkError::Broken))
    }

    fn prepare(proto: &ModelProto, optimise: Optimise) -> Result<Self, NetworkError> {
        let prepare = |e: TractError| NetworkError::Prepare(e.into());
        let mut model = tract_onnx::onnx().model_for_proto_model(proto).map_err(prepare)?;
        let mut inputs = tvec!();
        for (index, outlet) in model.inputs.clone().into_iter().enumerate() {
            let fact = model.outlet_fact(outlet).map_err(prepare)?;
            let undeclared = || NetworkError::Input {
                expected: "an input with a type and a number of axes".into(),
                got: format!("{fact:?}"),
            };
            let kind = fact.datum_type.concretize().ok_or_else(undeclared)?;
            if fact.shape.is_open() {
                return Err(undeclared());
            }
            let size = |d: DimFact| d.concretize().and_then(|d| d.to_usize().ok()).unwrap_or(1);
            let shape: Vec<usize> = fact.shape.dims().cloned().map(size).collect();
            let count: usize = shape.iter().product();
            let pattern: Vec<f32> = (0..count).map(|i| (i % 251) as f32 / 251.0).collect();
            let tensor = Tensor::from_shape(&shape, &pattern)
                .and_then(|t| t.cast_to_dt(kind).map(Cow::into_owned))
                .map_err(prepare)?;
            model.set_input_fact(index, InferenceFact::dt_shape(kind, shape)).map_err(prepare)?;
            inputs.push(tensor.into_tvalue());
        }
        let plan = optimise(model).and_then(|m| m.into_runnable()).map_err(prepare)?;
        Ok(Self { plan, inputs })
    }

    /// Runs it once; what it gives is thrown away.
    ///
    /// # Errors
    /// If an operator fails.
    pub fn run(&self) -> Result<(), NetworkError> {
        let run = |e: TractError| NetworkError::Run(e.into());
        fast::together(|| self.plan.run(self.inputs.clone())).map(drop).map_err(run)
    }

    /// Runs it once and times each operator with `clock`, in its unit.
    ///
    /// # Errors
    /// If an operator fails.
    pub fn profile(&self, clock: &mut dyn FnMut() -> u64) -> Result<Vec<OpTime>, NetworkError> {
        fast::profile(&self.plan, self.inputs.clone(), clock)
            .map_err(|e| NetworkError::Run(e.into()))
    }
}
