//! Networks: what is read is what is run, differentiated and written.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use pawlatch_trainer::cache::Frozen;
use pawlatch_trainer::engine::{Model, device, to_host};
use pawlatch_trainer::export::{against_source, difference, fully_convolutional};
use pawlatch_trainer::net::fold::BatchNorm;
use pawlatch_trainer::net::onnx::Precision;
use pawlatch_trainer::net::zoo::Architecture;
use pawlatch_trainer::net::{Array, Net, Node, Op};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A file of the shared material; none where it is not laid beside the repository.
fn shared(path: &str) -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    if root.exists() {
        return Some(root.join(path));
    }
    assert!(std::env::var_os("CI").is_none(), "../shared is absent");
    eprintln!("skipped: ../shared is absent");
    None
}

fn one_node(op: Op, shape: [usize; 4], params: &[(&str, Vec<usize>)]) -> Net {
    let mut net = Net {
        input: "x".into(),
        input_shape: shape.map(Some),
        outputs: vec!["y".into()],
        ..Net::default()
    };
    let mut inputs = vec!["x"];
    for (i, (name, shape)) in params.iter().enumerate() {
        let n = shape.iter().product();
        let data = random(n, 40 + i as u64);
        net.params.insert((*name).into(), Array::new(shape.clone(), data).unwrap());
        inputs.push(name);
    }
    net.push("y", op, &inputs);
    net
}

/// `sum(weights * net(x))` in f64, for central differences; only small nets are run this way.
fn objective(net: &Net, x: &[f32], weights: &[f32]) -> f64 {
    let y = reference(net, x, net.input_shape.map(|side| side.unwrap()));
    y.iter().zip(weights).map(|(y, w)| y * f64::from(*w)).sum()
}

/// A plain f64 implementation of each operation, written from the formulas.
fn reference(net: &Net, x: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let node = &net.nodes[0];
    let param = |i: usize| -> Vec<f64> {
        node.inputs
            .get(i)
            .and_then(|p| net.params.get(p))
            .map_or(vec![], |p| p.data.iter().map(|&v| f64::from(v)).collect())
    };
    let at = |b: usize, ch: usize, y: isize, xx: isize| -> Option<f64> {
        (y >= 0 && xx >= 0 && y < h as isize && xx < w as isize)
            .then(|| x[((b * c + ch) * h + y as usize) * w + xx as usize])
    };
    let shapes = net.shapes([n, c, h, w]).unwrap();
    let out = &shapes["y"];
    let each = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(v)).collect::<Vec<_>>();
    let windows =
        |stride: [usize; 2], pads: [usize; 4], f: &dyn Fn(usize, usize, isize, isize) -> f64| {
            let (mut values, [on, oc, oh, ow]) =
                (Vec::new(), <[usize; 4]>::try_from(out.as_slice()).unwrap());
            for b in 0..on {
                for o in 0..oc {
                    for y in 0..oh {
                        for xx in 0..ow {
                            values.push(f(
                                b,
                                o,
                                (y * stride[0]) as isize - pads[0] as isize,
                                (xx * stride[1]) as isize - pads[1] as isize,
                            ));
                        }
                    }
                }
            }
            values
        };
    match &node.op {
        Op::Conv { stride, pads, dilation, groups } => {
            let (weight, bias) = (param(1), param(2));
            let &[oc, per, kh, kw] = net.params["w"].shape.as_slice() else { panic!() };
            windows(*stride, *pads, &|b, o, y0, x0| {
                let group = o / (oc / groups);
                let mut sum = bias.get(o).copied().unwrap_or(0.0);
                for i in 0..per {
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let v = at(
                                b,
                                group * per + i,
                                y0 + (ky * dilation[0]) as isize,
                                x0 + (kx * dilation[1]) as isize,
                            );
                            sum += v.unwrap_or(0.0) * weight[((o * per + i) * kh + ky) * kw + kx];
                        }
                    }
                }
                sum
            })
        }
        Op::MaxPool { kernel, stride, pads, .. } => windows(*stride, *pads, &|b, o, y0, x0| {
            let cells = (0..kernel[0] * kernel[1]).filter_map(|k| {
                at(b, o, y0 + (k / kernel[1]) as isize, x0 + (k % kernel[1]) as isize)
            });
            cells.fold(f64::NEG_INFINITY, f64::max)
        }),
        Op::AveragePool { kernel, stride, pads, count_pads } => {
            windows(*stride, *pads, &|b, o, y0, x0| {
                let cells: Vec<f64> = (0..kernel[0] * kernel[1])
                    .filter_map(|k| {
                        at(b, o, y0 + (k / kernel[1]) as isize, x0 + (k % kernel[1]) as isize)
                    })
                    .collect();
                cells.iter().sum::<f64>()
                    / if *count_pads { (kernel[0] * kernel[1]) as f64 } else { cells.len() as f64 }
            })
        }
        Op::Lrn { size, alpha, beta, bias } => (0..x.len())
            .map(|i| {
                let (b, ch, cell) = (i / (c * h * w), i / (h * w) % c, i % (h * w));
                let before = (size - 1) / 2;
                let near = (ch as isize - before as isize..=(ch + size - 1 - before) as isize)
                    .filter(|k| *k >= 0 && *k < c as isize);
                let squares: f64 =
                    near.map(|k| x[(b * c + k as usize) * h * w + cell].powi(2)).sum();
                x[i] / (f64::from(*bias) + f64::from(*alpha) / *size as f64 * squares)
                    .powf(f64::from(*beta))
            })
            .collect(),
        Op::GlobalAveragePool => {
            x.chunks(h * w).map(|p| p.iter().sum::<f64>() / (h * w) as f64).collect()
        }
        Op::Relu => each(&|v| v.max(0.0)),
        Op::LeakyRelu { slope } => each(&|v| if v > 0.0 { v } else { v * f64::from(*slope) }),
        Op::Clip { low, high } => each(&|v| v.clamp(f64::from(*low), f64::from(*high))),
        Op::Sigmoid => each(&|v| 1.0 / (1.0 + (-v).exp())),
        Op::Tanh => each(&f64::tanh),
        Op::HardSwish => each(&|v| v * (v / 6.0 + 0.5).clamp(0.0, 1.0)),
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            let p = param(1);
            x.iter()
                .enumerate()
                .map(|(i, &v)| {
                    let q = p[i / (h * w) % c];
                    match node.op {
                        Op::Add => v + q,
                        Op::Sub => v - q,
                        Op::Mul => v * q,
                        _ => v / q,
                    }
                })
                .collect()
        }
        Op::Softmax { axis: 1 } => (0..x.len())
            .map(|i| {
                let (b, cell) = (i / (c * h * w), i % (h * w));
                x[i].exp() / (0..c).map(|k| x[(b * c + k) * h * w + cell].exp()).sum::<f64>()
            })
            .collect(),
        Op::Upsample { factor } => windows([1, 1], [0; 4], &|b, o, y, xx| {
            at(b, o, y / *factor as isize, xx / *factor as isize).unwrap()
        }),
        Op::Slice { axis: 1, start, end, step } => (0..n)
            .flat_map(|b| (*start..(*end).min(c)).step_by(*step).map(move |k| (b, k)))
            .flat_map(|(b, k)| x[(b * c + k) * h * w..][..h * w].to_vec())
            .collect(),
        Op::Transpose { perm } if perm == &[0, 1, 3, 2] => (0..x.len())
            .map(|i| {
                let (plane, r, q) = (i / (h * w), i / h % w, i % h);
                x[plane * h * w + q * w + r]
            })
            .collect(),
        Op::Flatten | Op::Identity | Op::Reshape { .. } => x,
        other => panic!("no reference for {other:?}"),
    }
}

#[test]
fn every_operation_and_its_gradient_match_plain_f64() {
    let conv = |stride: usize, pads, dilation: usize, groups| Op::Conv {
        stride: [stride; 2],
        pads,
        dilation: [dilation; 2],
        groups,
    };
    let max = |pads, ceil| Op::MaxPool { kernel: [3; 2], stride: [2; 2], pads, ceil };
    let channelwise = || vec![("p", vec![4, 1, 1])];
    let w = |shape: &[usize]| vec![("w", shape.to_vec()), ("b", vec![shape[0]])];
    let cases: Vec<(Op, Vec<(&str, Vec<usize>)>)> = vec![
        (conv(1, [1; 4], 1, 1), w(&[3, 4, 3, 3])),
        (conv(2, [0, 0, 1, 1], 1, 4), w(&[4, 1, 3, 3])),
        (conv(2, [1, 1, 2, 2], 1, 4), w(&[4, 1, 5, 5])),
        (conv(1, [2; 4], 2, 2), w(&[6, 2, 3, 3])),
        (conv(1, [0; 4], 1, 1), w(&[5, 4, 1, 1])),
        (max([1, 1, 0, 0], false), vec![]),
        (max([0; 4], true), vec![]),
        (max([0, 1, 0, 1], true), vec![]),
        (
            Op::AveragePool { kernel: [3; 2], stride: [2; 2], pads: [1; 4], count_pads: false },
            vec![],
        ),
        (
            Op::AveragePool { kernel: [2; 2], stride: [1; 2], pads: [1; 4], count_pads: true },
            vec![],
        ),
        (Op::Lrn { size: 3, alpha: 0.3, beta: 0.75, bias: 1.0 }, vec![]),
        (Op::GlobalAveragePool, vec![]),
        (Op::Relu, vec![]),
        (Op::LeakyRelu { slope: 0.1 }, vec![]),
        (Op::Clip { low: -0.5, high: 0.5 }, vec![]),
        (Op::Sigmoid, vec![]),
        (Op::Tanh, vec![]),
        (Op::HardSwish, vec![]),
        (Op::Add, channelwise()),
        (Op::Sub, channelwise()),
        (Op::Mul, channelwise()),
        (Op::Div, channelwise()),
        (Op::Softmax { axis: 1 }, vec![]),
        (Op::Upsample { factor: 2 }, vec![]),
        (Op::Slice { axis: 1, start: 1, end: 9, step: 2 }, vec![]),
        (Op::Transpose { perm: vec![0, 1, 3, 2] }, vec![]),
        (Op::Flatten, vec![]),
        (Op::Reshape { shape: vec![0, 2, -1] }, vec![]),
        (Op::Identity, vec![]),
    ];
    for (op, params) in cases {
        let name = format!("{op:?}");
        check_gradient(&one_node(op, [2, 4, 6, 5], &params), &name);
    }
}

/// A convolution that is held within limits is one step where nothing else reads it; with an
/// `Identity` between the two it is not.
#[test]
fn a_convolution_within_limits_is_the_same_in_one_step_and_in_two() {
    let conv = |stride, pads, groups| Op::Conv { stride, pads, dilation: [1, 1], groups };
    let clip = Op::Clip { low: -0.3, high: 0.4 };
    let cases = [
        (conv([1, 1], [0; 4], 1), vec![5, 4, 1, 1], true, &clip),
        (conv([1, 1], [0; 4], 1), vec![5, 4, 1, 1], false, &Op::Relu),
        (conv([1, 1], [1; 4], 4), vec![4, 1, 3, 3], true, &clip),
        (conv([2, 2], [0, 0, 1, 1], 4), vec![4, 1, 3, 3], true, &Op::Relu),
        (conv([2, 1], [2, 1, 0, 3], 4), vec![4, 1, 5, 2], false, &clip),
        (conv([3, 3], [1; 4], 4), vec![4, 1, 1, 4], true, &clip),
        (conv([1, 1], [1; 4], 1), vec![3, 4, 3, 3], true, &clip),
    ];
    let (mut x, shape) = (random(2 * 4 * 23 * 37, 5), [2, 4, 23, 37]);
    for (op, weights, biased, limit) in cases {
        let name = format!("{op:?} {limit:?}");
        let mut params = vec![("w", weights.clone())];
        params.extend(biased.then(|| ("b", vec![weights[0]])));
        let run = |x: &[f32], apart: bool| {
            let mut net = one_node(op.clone(), shape, &params);
            let scaled = Array::new(vec![4, 1, 1], vec![0.5, 1.0, -1.0, 2.0]).unwrap();
            net.params.insert("s".into(), scaled);
            // So that there is a gradient of the input.
            net.nodes[0].inputs[0] = net.push("scaled", Op::Mul, &["x", "s"]);
            net.nodes.rotate_right(1);
            let y = if apart { net.push("apart", Op::Identity, &["y"]) } else { "y".into() };
            net.outputs = vec![net.push("limited", limit.clone(), &[&y])];
            let model = Model::trainable(net, &device("cpu").unwrap());
            let input = model.batch(x.to_vec(), shape).unwrap();
            let y = model.forward(input, None).unwrap().output(0).unwrap();
            let weights = random(y.dims().iter().product(), 6);
            let weights = burn::tensor::TensorData::new(weights, y.dims());
            let weights = burn::tensor::Tensor::<4>::from_data(weights, model.device());
            let grads = (y.clone() * weights).sum().backward();
            let slopes = model.params().map(|(_, p)| to_host(p.grad(&grads).unwrap()).unwrap());
            (to_host(y).unwrap(), slopes.collect::<Vec<_>>())
        };
        let ((one, one_slopes), (two, two_slopes)) = (run(&x, false), run(&x, true));
        assert!(difference(&one, &two) < 1e-5, "{name}");
        for (a, b) in one_slopes.iter().zip(&two_slopes) {
            let largest = b.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
            assert!(difference(a, b) < 1e-5 * largest, "{name}: {}", difference(a, b));
        }
        let good = std::mem::replace(&mut x[79], f32::NAN);
        assert!(run(&x, false).0.iter().any(|y| y.is_nan()), "{name}: no number became one");
        x[79] = good;
    }
}

fn check_gradient(net: &Net, name: &str) {
    let shape = [2, 4, 6, 5];
    let x = random(240, 1);
    let expected = reference(net, &x, shape);
    let weights = random(expected.len(), 2);
    // The input as a parameter too, so that its gradient is checked in the same way.
    let mut with_input = net.clone();
    with_input.input = "zero".into();
    with_input.nodes.insert(
        0,
        Node {
            name: "in".into(),
            op: Op::Add,
            inputs: vec!["zero".into(), "xp".into()],
            output: "x".into(),
        },
    );
    with_input.params.insert("xp".into(), Array::new(shape, x.clone()).unwrap());
    let model = Model::trainable(with_input, &device("cpu").unwrap());
    let zeros = model.batch(vec![0.0; 240], shape).unwrap();
    let y = model.forward(zeros, None).unwrap().output(0).unwrap();
    let got = to_host(y.clone()).unwrap();
    for (g, e) in got.iter().zip(&expected) {
        assert!((f64::from(*g) - e).abs() < 1e-5, "{name}: {g} is not {e}");
    }
    let w = burn::tensor::Tensor::<1>::from_data(
        burn::tensor::TensorData::new(weights.clone(), [weights.len()]),
        model.device(),
    );
    let grads = (y.reshape([weights.len()]) * w).sum().backward();
    let grads: BTreeMap<String, Vec<f32>> = model
        .params()
        .filter_map(|(n, p)| Some((n.to_owned(), to_host(p.grad(&grads)?).unwrap())))
        .collect();
    let mut places: Vec<(String, usize)> =
        (0..240).step_by(7).map(|i| ("xp".to_owned(), i)).collect();
    for (p, array) in &net.params {
        places.extend((0..array.data.len()).step_by(3).map(|i| (p.clone(), i)));
    }
    for (param, i) in places {
        let eps = 1e-3;
        let shifted = |by: f32| {
            let (mut net, mut x) = (net.clone(), x.clone());
            if param == "xp" {
                x[i] += by
            } else {
                net.params.get_mut(&param).unwrap().data[i] += by
            }
            let value = objective(&net, &x, &weights);
            let actual = if param == "xp" { x[i] } else { net.params[&param].data[i] };
            (value, f64::from(actual))
        };
        let ((up, a), (down, b)) = (shifted(eps), shifted(-eps));
        let slope = (up - down) / (a - b);
        let got = f64::from(grads[&param][i]);
        // Kinks of piecewise functions within eps of a sample would show here; the seeds avoid them.
        assert!(
            (slope - got).abs() < 2e-3 * slope.abs().max(1.0),
            "{name}: d{param}[{i}] is {got}, not {slope}"
        );
    }
}

#[test]
fn folding_a_batch_norm_changes_nothing_but_the_number_of_nodes() {
    let x = random(2 * 3 * 5 * 5, 9);
    let weight = Array::new([4, 3, 3, 3], random(108, 3)).unwrap();
    let [gamma, beta, mean] = [4, 5, 6].map(|s| random(4, s));
    let variance: Vec<f32> = random(4, 7).iter().map(|v| v.abs() + 0.1).collect();
    let bn =
        BatchNorm { gamma: &gamma, beta: &beta, mean: &mean, variance: &variance, epsilon: 1e-3 };
    let (w, b) = bn.fold(&weight, None).unwrap();
    let op = Op::Conv { stride: [2; 2], pads: [0, 0, 1, 1], dilation: [1; 2], groups: 1 };
    let mut plain = one_node(op, [2, 3, 5, 5], &[("w", vec![4, 3, 3, 3]), ("b", vec![4])]);
    plain.params.insert("w".into(), weight);
    plain.params.insert("b".into(), Array::zeros([4]));
    let mut folded = plain.clone();
    folded.params.extend([("w".into(), w), ("b".into(), b)]);
    let (raw, got) = (reference(&plain, &x, [2, 3, 5, 5]), reference(&folded, &x, [2, 3, 5, 5]));
    for (i, (r, g)) in raw.iter().zip(&got).enumerate() {
        // Two by two cells of four channels of two pictures.
        let c = i / 4 % 4;
        let e = (r - f64::from(mean[c])) / f64::from(variance[c] + 1e-3).sqrt()
            * f64::from(gamma[c])
            + f64::from(beta[c]);
        assert!((e - g).abs() < 1e-5);
    }
}

#[test]
fn every_architecture_survives_onnx_and_agrees_with_tract() {
    use clap::ValueEnum;
    for &a in Architecture::value_variants() {
        let net = a.fresh(5, 0.25, 3).unwrap();
        let read = Net::decode(&net.encode(Precision::Single).unwrap()).unwrap();
        assert_eq!(
            read.params.values().map(|p| p.data.len()).sum::<usize>(),
            net.param_count(),
            "{a:?}"
        );
        let dropouts = |net: &Net| {
            let is = |n: &&Node| matches!(n.op, Op::Dropout { rate } if rate == 0.5);
            net.nodes.iter().filter(is).count()
        };
        assert_eq!(dropouts(&read), dropouts(&net), "{a:?}");
        assert!(dropouts(&net) == 2 || !format!("{a:?}").starts_with("Alexnet"), "{a:?}");
        assert_eq!(dropouts(&Net::decode(&net.encode(Precision::Half).unwrap()).unwrap()), 0);
        let shape = net.shape_at(a.side());
        let x = random(shape.iter().product(), 5);
        let model = Model::new(read, &device("cpu").unwrap());
        let burn =
            model.forward(model.batch(x.clone(), shape).unwrap(), None).unwrap().array(0).unwrap();
        let tract = &Frozen::new(&net, a.side()).unwrap().run(&x).unwrap()[0];
        let scale = burn.data.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
        let gap = difference(&burn.data, &tract.data) / scale;
        assert!(gap < 1e-4, "{a:?}: {gap}");
        let (_, gap) =
            fully_convolutional(&net, a.side()).unwrap_or_else(|e| panic!("{a:?}: {e:#}"));
        assert!(gap < 1e-4 * scale, "{a:?}: {gap}");
    }
}

#[test]
fn cutting_and_joining_gives_the_same_network() {
    let net = Architecture::SmallResidual.fresh(3, 1.0, 1).unwrap();
    let (front, back) = net.cut("layer2.0.act").unwrap();
    assert!(!front.nodes.is_empty() && !back.nodes.is_empty());
    let joined = front.join(back).unwrap();
    assert_eq!(joined.param_count(), net.param_count());
    assert_eq!(joined.nodes, net.nodes);
    // A residual branch runs past the middle of a block.
    let error = net.cut("layer2.0.conv1.act").unwrap_err().to_string();
    assert!(error.contains("a branch runs past it"), "{error}");
    assert!(net.cut("nowhere").unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn a_node_outside_the_vocabulary_is_named() {
    use prost::Message;
    use tract_onnx::pb;
    let net = Architecture::SmallDepthwise.fresh(2, 0.25, 1).unwrap();
    let mut model =
        pb::ModelProto::decode(net.encode(Precision::Single).unwrap().as_slice()).unwrap();
    let node = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type == "Conv").unwrap();
    node.op_type = "DeformConv".into();
    let name = node.name.clone();
    let error = format!("{:#}", Net::decode(&model.encode_to_vec()).unwrap_err());
    assert!(error.contains(&name) && error.contains("DeformConv"), "{error}");
    assert!(Net::decode(b"not a network").is_err());
}

#[test]
fn a_pool_that_rounds_up_has_a_window_for_what_is_left_but_none_of_padding() {
    let rows = |size: usize, [kernel, stride]: [usize; 2], end: usize, ceil: bool| {
        let op =
            Op::MaxPool { kernel: [kernel; 2], stride: [stride; 2], pads: [0, 0, end, 0], ceil };
        one_node(op, [1, 1, size, 9], &[]).shapes([1, 1, size, 9]).unwrap()["y"][2]
    };
    assert_eq!([rows(6, [3, 2], 0, false), rows(6, [3, 2], 0, true)], [2, 3]);
    assert_eq!([rows(7, [3, 2], 0, false), rows(7, [3, 2], 0, true)], [3, 3]);
    assert_eq!([rows(4, [2, 3], 0, true), rows(3, [2, 3], 1, true)], [2, 1]);
}

#[test]
fn a_mean_over_the_map_is_read_however_it_is_written() {
    use prost::Message;
    use tract_onnx::pb;
    let net = Architecture::SmallDepthwise.fresh(2, 0.25, 1).unwrap();
    let shape = net.shape_at(96);
    let run = |net: Net| {
        let model = Model::new(net, &device("cpu").unwrap());
        let input = model.batch(random(shape.iter().product(), 3), shape).unwrap();
        model.forward(input, None).unwrap().array(0).unwrap()
    };
    let expected = run(net.clone());
    let ints = |name: &str, ints: &[i64]| pb::AttributeProto {
        name: name.into(),
        ints: ints.to_vec(),
        i: ints[0],
        ..Default::default()
    };
    let written = |axes: &[i64], keep: i64| {
        let mut model =
            pb::ModelProto::decode(net.encode(Precision::Single).unwrap().as_slice()).unwrap();
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let node = nodes.iter_mut().find(|n| n.op_type == "GlobalAveragePool").unwrap();
        node.op_type = "ReduceMean".into();
        node.attribute = vec![ints("axes", axes), ints("keepdims", &[keep])];
        Net::decode(&model.encode_to_vec())
    };
    for (axes, keep) in [([2, 3], 1), ([-1, -2], 1), ([3, 2], 0)] {
        assert_eq!(run(written(&axes, keep).unwrap()), expected, "{axes:?} {keep}");
    }
    let error = format!("{:#}", written(&[1], 1).unwrap_err());
    assert!(error.contains("only a mean over rows and columns"), "{error}");
}

#[test]
fn sixteen_bit_weights_are_half_the_size_and_close() {
    let net = Architecture::EfficientnetLite0.fresh(5, 1.0, 3).unwrap();
    let half = net.encode(Precision::Half).unwrap();
    assert!(half.len() * 10 < net.encode(Precision::Single).unwrap().len() * 6);
    let read = Net::decode(&half).unwrap();
    for (name, p) in &net.params {
        let q = &read.params[name];
        for (a, b) in p.data.iter().zip(&q.data) {
            assert!((a - b).abs() <= a.abs() * 1e-3 + 1e-6, "{name}");
        }
    }
}

/// The source runs in tract straight from its file; ours goes through the graph and burn.
#[test]
fn an_imported_network_equals_its_source_on_a_photo() {
    let Some(dir) = shared("data/classify/val/cat") else { return };
    let photo = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let picture = pawlatch_trainer::data::open(&photo).unwrap();
    let mut sources = Vec::new();
    for (name, side) in
        [("efficientnet_lite0/efficientnet_lite0", 224), ("yolox_nano/yolox_nano", 416)]
    {
        let Some(path) = shared(&format!("models/{name}.onnx")) else { return };
        let mut net = Net::load(&path).unwrap();
        let gaps = against_source(&net, &path, side, &picture).unwrap();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap < 1e-4), "{name}: {gaps:?}");
        // Another network is told from it.
        let weights = net.params.values_mut().next().unwrap();
        weights.data.iter_mut().for_each(|w| *w *= 1.01);
        assert!(against_source(&net, &path, side, &picture).unwrap()[0] > 1e-4, "{name}");
        sources.push(net);
    }
    let yolox = shared("models/yolox_nano/yolox_nano.onnx").unwrap();
    assert!(against_source(&sources[0], &yolox, 224, &picture).is_err());
}

#[test]
fn the_shipped_classifier_is_its_own_heat_map() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pet_classifier");
    let net = Net::load(&dir.join("model.onnx")).unwrap();
    // The mean of the map is the answer, so one file serves the door for what and for where.
    let (map, _) = fully_convolutional(&net, 224).unwrap();
    let labels = net.param(&net.last_dense().unwrap().1).unwrap().shape[0];
    let wide = map.shapes([1, 3, 288, 448]).unwrap();
    assert_eq!(wide[&map.outputs[0]], [1, labels, 9, 14]);
}

#[test]
fn what_is_no_number_differs_from_everything() {
    assert_eq!(difference(&[1.0, 5.0, 2.0], &[1.5, 3.0, 2.0]), 2.0);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(difference(&[1.0, bad, 9.0], &[1.0, bad, 2.0]).is_nan());
    }
}
