//! `vipline-perf`: the benchmark harness.

#![forbid(unsafe_code)]

mod prog;
mod stats;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let filter = arguments.iter().position(|a| a == "--filter").and_then(|at| arguments.get(at + 1));
    let (runs, repeat) = if quick { (15, 100_000) } else { (21, 200_000) };
    prog::run(quick, filter.map(String::as_str), runs, repeat)
}
