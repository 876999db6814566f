//! Whole networks against plain tract.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;

use super::{Dot, Isa, Watch, layout, optimise_for, optimise_to_bytes, profile, rules, together};

/// A network of the zoo and how its outputs are to be compared.
struct Net {
    file: &'static str,
    /// The range of its input values.
    input: (f32, f32),
    /// Outputs are a top-k list, in which neighbours may swap places: compared sorted.
    sorted: bool,
}

const ZOO: [Net; 4] = [
    Net { file: "efficientnet_lite0/efficientnet_lite0.onnx", input: (-1.0, 1.0), sorted: false },
    Net { file: "yolox_nano/yolox_nano.onnx", input: (0.0, 255.0), sorted: false },
    Net { file: "nanodet_plus_m_416/nanodet_plus_m_416.onnx", input: (-2.0, 2.0), sorted: false },
    Net { file: "deimv2_femto/deimv2_femto_static.onnx", input: (0.0, 1.0), sorted: true },
];

/// The zoo beside the repository. It cannot be shipped, so elsewhere these tests only say so; in
/// CI its absence is a failure.
fn zoo() -> Option<PathBuf> {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    if shared.is_dir() {
        return Some(shared.join("models"));
    }
    assert!(std::env::var_os("CI").is_none(), "../shared is absent");
    eprintln!("skipped: ../shared is absent");
    None
}

fn load(net: &Net) -> Option<InferenceModel> {
    Some(read(&zoo()?.join(net.file)))
}

fn read(file: &Path) -> InferenceModel {
    let model = tract_onnx::onnx().model_for_path(file).unwrap();
    let shape = model.input_fact(0).unwrap().shape.as_concrete_finite().unwrap().unwrap();
    model.with_input_fact(0, f32::fact(&shape).into()).unwrap()
}

/// Smooth colours with some noise: the activations of a picture, not of noise.
fn picture(net: &Net, model: &InferenceModel) -> Tensor {
    picture_of(net.input, model, 1.0)
}

/// One of many such pictures; `wave` is how fast its colours change.
fn picture_of(input: (f32, f32), model: &InferenceModel, wave: f32) -> Tensor {
    let shape = model.input_fact(0).unwrap().shape.as_concrete_finite().unwrap().unwrap();
    let width = shape[3];
    let pixel = |i: usize| {
        let (x, y) = ((i % width) as f32, (i / width) as f32);
        let noise = (i.wrapping_mul(2_654_435_761) % 1000) as f32 / 1000.0;
        let colour = 0.4 + 0.3 * (wave * x / 37.0).sin() * (wave * y / 23.0).cos() + 0.2 * noise;
        input.0 + colour * (input.1 - input.0)
    };
    let pixels: Vec<f32> = (0..shape.iter().product()).map(pixel).collect();
    Tensor::from_shape(&shape, &pixels).unwrap()
}

fn run(model: TypedModel, x: &Tensor) -> Vec<Tensor> {
    let outputs = model.into_runnable().unwrap().run(tvec!(x.clone().into())).unwrap();
    outputs.into_iter().map(TValue::into_tensor).collect()
}

fn floats(tensor: &Tensor, sorted: bool) -> Vec<f32> {
    let tensor = tensor.cast_to::<f32>().unwrap();
    let mut values = tensor.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    if sorted {
        values.sort_by(f32::total_cmp);
    }
    values
}

#[test]
fn the_zoo_gives_what_plain_tract_gives() {
    for net in &ZOO {
        let Some(model) = load(net) else { return };
        let x = picture(net, &model);
        let plain = run(model.clone().into_optimized().unwrap(), &x);
        for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::PORTABLE) {
            let fast = run(optimise_for(isa, model.clone()).unwrap(), &x);
            assert_eq!(plain.len(), fast.len());
            for (plain, fast) in plain.iter().zip(&fast) {
                assert_eq!(plain.shape(), fast.shape());
                let (plain, fast) = (floats(plain, net.sorted), floats(fast, net.sorted));
                let largest = plain.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
                for (a, b) in plain.iter().zip(&fast) {
                    let close = (a - b).abs() <= 1e-4 * largest;
                    assert!(close, "{} on {}: {b} is not {a}", net.file, isa.name());
                }
            }
        }
    }
}

/// An upgrade of tract that changes what it hands our rules must not pass unseen.
#[test]
fn every_convolution_and_pooling_of_the_zoo_is_replaced() {
    let Some(isa) = Isa::detect() else { return };
    for net in &ZOO {
        let Some(model) = load(net) else { return };
        let typed = model.clone().into_typed().unwrap();
        let windows = typed.nodes().iter().filter(|n| n.op_is::<Conv>() || n.op_is::<MaxPool>());
        let windows = windows.count();
        let fast = optimise_for(isa, model).unwrap();
        let names: Vec<_> = fast.nodes().iter().map(|n| n.op.name()).collect();
        let ours = ["FastPointwise", "FastConv", "FastDepthwise", "FastMaxPool"];
        let replaced = names.iter().filter(|n| ours.contains(&n.as_ref())).count();
        if net.sorted {
            assert_eq!(replaced, windows, "{}: {names:?}", net.file);
        } else {
            let dense = typed.nodes().iter().filter(|n| n.op_is::<EinSum>()).count();
            assert_eq!(replaced, windows + dense, "{}: {names:?}", net.file);
            // Nothing that computes is left of a convolutional network.
            let known = ["Source", "Const", "IntoShape", "OptMulByScalar"];
            let left: Vec<_> = names
                .iter()
                .filter(|n| !n.starts_with("Fast") && !known.contains(&n.as_ref()))
                .collect();
            assert!(left.is_empty(), "{}: {left:?}", net.file);
        }
    }
}

/// However the matrix lies, and whether something is added to the product.
#[test]
fn a_dense_layer_is_replaced_together_with_its_bias() {
    let Some(isa) = Isa::detect() else { return };
    let wave = |shape: &[usize]| {
        let value = |i: usize| (i as f32 * 0.37).sin();
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Tensor::from_shape(shape, &values).unwrap()
    };
    let (inputs, outputs) = (70, 37);
    for (transposed, biased) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, inputs])).unwrap();
        let shape = if transposed { [outputs, inputs] } else { [inputs, outputs] };
        let matrix = model.add_const("matrix", wave(&shape)).unwrap();
        let axes = AxesMapping::for_numpy_matmul(2, false, transposed, false).unwrap();
        let product = EinSum::new(axes, f32::datum_type());
        let mut y = model.wire_node("product", product, &[x, matrix]).unwrap();
        if biased {
            let bias = model.add_const("bias", wave(&[1, outputs])).unwrap();
            y = model.wire_node("sum", math::add(), &[bias, y[0]]).unwrap();
        }
        model.select_output_outlets(&y).unwrap();
        let mut fast = model.clone().into_decluttered().unwrap();
        rules::fuse(&mut fast).unwrap();
        let fast = layout::into_blocks(isa, &fast, None).unwrap().into_optimized().unwrap();
        let count = fast.nodes().iter().filter(|n| n.op.name() == "FastPointwise").count();
        let left = fast.nodes().iter().any(|n| n.op.name().starts_with("Opt"));
        assert!(count == 1 && !left, "{fast}");
        let (x, plain) = (wave(&[1, inputs]), model.into_optimized().unwrap());
        let (plain, fast) = (run(plain, &x), run(fast, &x));
        assert_eq!(plain[0].shape(), fast[0].shape());
        let pairs = floats(&plain[0], false).into_iter().zip(floats(&fast[0], false));
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} {b}"));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_outputs() {
    let Some(isa) = Isa::detect() else { return };
    for net in &ZOO {
        let Some(model) = load(net) else { return };
        let x = picture(net, &model);
        let fast = optimise_for(isa, model).unwrap();
        let alone = run(fast.clone(), &x);
        for threads in [2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let shared = pool.install(|| together(|| run(fast.clone(), &x)));
            assert_eq!(alone, shared, "{}", net.file);
        }
    }
}

/// A network that the door ships with, and what becomes of it in bytes.
struct Shipped {
    file: &'static str,
    pointwise: usize,
    depthwise: usize,
    /// 1x1 convolutions that stay floats: those that give the network's outputs, and dense layers.
    floats: usize,
}

const SHIPPED: [Shipped; 3] = [
    Shipped {
        file: "efficientnet_lite0/efficientnet_lite0.onnx",
        pointwise: 32,
        depthwise: 15,
        floats: 1,
    },
    Shipped { file: "pet_classifier/model.onnx", pointwise: 32, depthwise: 15, floats: 1 },
    Shipped { file: "pet_detector/model.onnx", pointwise: 43, depthwise: 20, floats: 3 },
];

/// The shipped networks in bytes, with ranges from made-up pictures: as many operators as can be
/// are of bytes, and on another such picture the outputs stay near those of floats. (What it does
/// to real answers, `cargo xtask evaluate --precision int8` measures.)
#[test]
fn the_shipped_networks_in_bytes_are_near_those_of_floats() {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models");
    for net in &SHIPPED {
        let model = read(&models.join(net.file));
        let (watched, mut watch) = Watch::over(model.clone()).unwrap();
        let watched = watched.into_runnable().unwrap();
        for wave in [0.3, 0.7, 1.5, 3.0] {
            let x = picture_of((-1.0, 1.0), &model, wave);
            watch.run(&watched, tvec!(x.into())).unwrap();
        }
        let x = picture_of((-1.0, 1.0), &model, 1.0);
        for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::PORTABLE) {
            let Some(dot) = Dot::of(isa) else { continue };
            let floats = run(optimise_for(isa, model.clone()).unwrap(), &x);
            let bytes = optimise_to_bytes(dot, watch.ranges(), model.clone()).unwrap();
            let count = |name| bytes.nodes().iter().filter(|n| n.op.name() == name).count();
            let made = ["FastBytePointwise", "FastByteDepthwise", "FastPointwise"].map(count);
            assert_eq!(made, [net.pointwise, net.depthwise, net.floats], "{}", net.file);
            for (floats, bytes) in floats.iter().zip(&run(bytes, &x)) {
                let (a, b) = (self::floats(floats, false), self::floats(bytes, false));
                let off: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
                let all: f32 = a.iter().map(|a| a * a).sum();
                let off = (off / all).sqrt();
                eprintln!("{} on {}: {off:.3}", net.file, isa.name());
                assert!(off < 0.2, "{} on {}: {off}", net.file, isa.name());
            }
        }
    }
}

/// A lost inline makes a network twenty times slower without failing any other test. A
/// measurement, so not among the tests that always run.
#[test]
#[ignore = "a measurement: cargo test --release -p pawlatch-core -- --ignored fast"]
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn the_fast_networks_are_fast() {
    let Some(isa) = Isa::detect() else { return };
    for net in &ZOO {
        let Some(model) = load(net) else { return };
        let x = picture(net, &model);
        let plain = model.clone().into_optimized().unwrap().into_runnable().unwrap();
        let fast = optimise_for(isa, model).unwrap().into_runnable().unwrap();
        let time = |network: &Arc<TypedSimplePlan>| {
            let start = Instant::now();
            network.run(tvec!(x.clone().into())).unwrap();
            start.elapsed()
        };
        // The best of interleaved runs: what others do on the machine hits both alike.
        let runs: Vec<_> = (0..9).map(|_| (time(&plain), time(&fast))).collect();
        let plain = runs.iter().map(|r| r.0).min().unwrap();
        let fast = runs.iter().map(|r| r.1).min().unwrap();
        assert!(fast * 3 < plain * 2, "{}: {fast:?} against {plain:?}", net.file);
    }
}

/// The profile accounts for every operator, and for all multiply-adds of the convolutions.
#[test]
fn the_profile_names_every_operator() {
    let Some(isa) = Isa::detect() else { return };
    let Some(model) = load(&ZOO[0]) else { return };
    let x = picture(&ZOO[0], &model);
    let network = optimise_for(isa, model).unwrap();
    let nodes = network.nodes().len();
    let mut ticks = 0;
    let mut clock = || {
        ticks += 1;
        ticks
    };
    let network = network.into_runnable().unwrap();
    let times = profile(&network, tvec!(x.into()), &mut clock).unwrap();
    assert!(times.len() <= nodes && times.iter().all(|t| t.time == 1));
    let macs: usize = times.iter().map(|t| t.macs).sum();
    assert!((370_000_000..400_000_000).contains(&macs), "{macs}");
}
