//! `vipline-operator`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    vipline_operator::run::main()
}
