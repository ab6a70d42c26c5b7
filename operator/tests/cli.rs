//! The command line as a user meets it, without an API server.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output, Stdio};

fn operator(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline-operator"));
    command.args(args).stdin(Stdio::null());
    // Nothing of the machine that runs the tests.
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.env_remove("KUBERNETES_SERVICE_HOST");
    command
}

fn run(args: &[&str]) -> Output {
    operator(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in ["run", "services", "pools", "crds", "uninstall", "Exit codes: 0 success"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
}

#[test]
fn crds_are_the_same_bytes_each_time() {
    let first = run(&["crds"]);
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(first.stdout, run(&["crds"]).stdout);
    assert_eq!(text(&first.stdout).matches("kind: CustomResourceDefinition").count(), 8);
}

#[test]
fn a_pipe_that_nobody_reads_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = operator(&["crds"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn what_cannot_be_used_is_exit_code_2_and_says_what_and_where() {
    for (args, words) in [
        (&["fly"][..], "unrecognized subcommand"),
        (&["run", "--listen", "8080"], ":PORT"),
        (&["run", "--service-selector", "a in b"], "parentheses"),
        (
            &["services", "--kubeconfig", "/nonexistent/config"],
            "/nonexistent/config",
        ),
        (&["pools"], "--kubeconfig"),
    ] {
        let output = run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn an_api_server_that_is_not_there_is_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    let config = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                  clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                  users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n";
    std::fs::write(&file, config).unwrap();
    let output = run(&["pools", "--kubeconfig", file.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("vipline-operator: addresspools cannot be listed"),
        "{said}"
    );
    assert_eq!(text(&output.stdout), "");
}
