//! `net show`: what a network is made of, as text or as a drawing.

use std::fmt::Write as _;

use anyhow::Result;

use crate::data::browse::escape;
use crate::net::Net;
use crate::net::shape::Layer;

/// A table of layers with shapes, parameters and multiply-adds, and their sums.
///
/// # Errors
/// If the network does not fit an input of `side` pixels.
pub fn text(net: &Net, side: usize) -> Result<String> {
    let shape = net.shape_at(side);
    let layers = net.layers(shape)?;
    let width = layers.iter().map(|l| l.name.len()).max().unwrap_or(4).max(5);
    let mut out = format!(
        "input {} {shape:?}\n{:<width$}  {:<16} {:>16} {:>10} {:>9}\n",
        net.input, "layer", "kind", "output", "params", "MMAC"
    );
    for l in &layers {
        let dims: Vec<String> = l.shape[1..].iter().map(usize::to_string).collect();
        let _ = writeln!(
            out,
            "{:<width$}  {:<16} {:>16} {:>10} {:>9.2}",
            l.name,
            l.kind,
            dims.join("x"),
            l.params,
            l.macs as f64 / 1e6
        );
    }
    let (params, macs) = totals(&layers);
    let _ = writeln!(
        out,
        "{} layers, {:.2} million parameters, {:.3} GMAC at {}x{}",
        layers.len(),
        params as f64 / 1e6,
        macs as f64 / 1e9,
        shape[2],
        shape[3]
    );
    Ok(out)
}

fn totals(layers: &[Layer]) -> (usize, u64) {
    (layers.iter().map(|l| l.params).sum(), layers.iter().map(|l| l.macs).sum())
}

/// The layers with weights as bars: height by channels, width by the logarithm of the cells,
/// colour by the share of the multiply-adds.
///
/// # Errors
/// If the network does not fit an input of `side` pixels.
pub fn svg(net: &Net, side: usize) -> Result<String> {
    let layers: Vec<Layer> =
        net.layers(net.shape_at(side))?.into_iter().filter(|l| l.params > 0).collect();
    let most = layers.iter().map(|l| l.macs).max().unwrap_or(1).max(1) as f64;
    let (mut x, mut body) = (10.0, String::new());
    for l in &layers {
        let cells: usize = l.shape[2..].iter().product();
        let (w, h) = (4.0 + 3.0 * (cells.max(1) as f64).log2(), 12.0 * (l.shape[1] as f64).log2());
        let heat = 0.15 + 0.85 * l.macs as f64 / most;
        let _ = write!(
            body,
            "<rect x='{x:.0}' y='{:.0}' width='{w:.0}' height='{h:.0}' fill='rgba(200,60,20,{heat:.2})' stroke='#444'>\
             <title>{} {} {:?}: {} parameters, {:.2} MMAC</title></rect>",
            100.0 - h / 2.0,
            escape(&l.name),
            l.kind,
            l.shape,
            l.params,
            l.macs as f64 / 1e6
        );
        x += w + 3.0;
    }
    Ok(format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {:.0} 200' width='{:.0}' height='200'>{body}</svg>\n",
        x + 10.0,
        x + 10.0
    ))
}
