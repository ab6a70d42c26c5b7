//! The command line without root: files are checked, commands talk to a daemon that is a socket of this test.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

const COMMANDS: [&str; 14] = [
    "run", "node", "detach", "check", "status", "vips", "backends", "counters", "top", "explain", "capture", "drain",
    "kube", "help",
];

const GOOD: &str = "
interfaces: [eth0]
seed: 9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7
vips:
  - address: 203.0.113.10
    protocol: tcp
    port: 80
    backends:
      - { name: worker-1, address: 10.0.0.1 }
      - { name: worker-2, address: 10.0.0.2 }
";

/// An unknown key, no seed, a bad address, a weight out of bounds, a duplicate VIP.
const BAD: &str = "
interfaces: [eth0]
colour: blue
vips:
  - { address: 203.0.113.300, protocol: tcp, port: 80, backends: [] }
  - address: 203.0.113.10
    protocol: tcp
    port: 80
    backends: [{ name: worker-1, address: 10.0.0.1, weight: 100000 }]
  - { address: 203.0.113.10, protocol: tcp, port: 80, backends: [] }
";
const BAD_PATHS: [&str; 5] = [
    "colour",
    "seed",
    "vips[0].address",
    "vips[1].backends[0].weight",
    "vips[2]",
];

fn vipline(args: &[&str]) -> Output {
    command(args).output().expect("vipline runs")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline"));
    command
        .args(args)
        .env_remove("VIPLINE_SOCKET")
        .env_remove("VIPLINE_LOG")
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn write(directory: &TempDir, contents: &str) -> String {
    let path = directory.path().join("config.yaml");
    fs::write(&path, contents).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_good_file_is_called_good_and_summed_up() {
    let directory = TempDir::new().unwrap();
    let file = write(&directory, GOOD);
    let output = vipline(&["check", "--config", &file]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        format!("{file}: good: 1 VIPs, 2 backends, 1 interfaces\n")
    );
    assert_eq!(text(&output.stderr), "");

    let output = vipline(&["check", "--config", &file, "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], true);
}

#[test]
fn a_bad_file_gets_all_its_errors_at_once_with_their_paths_and_exit_code_2() {
    let directory = TempDir::new().unwrap();
    let file = write(&directory, BAD);
    let output = vipline(&["check", "--config", &file]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let errors = text(&output.stderr);
    assert!(errors.starts_with(&file), "{errors}");
    for path in BAD_PATHS {
        assert!(errors.contains(path), "no word of {path} in:\n{errors}");
    }

    let output = vipline(&["check", "--config", &file, "-o", "json"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), String::new()));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    let errors = answer["errors"].as_array().unwrap();
    assert!(errors.len() >= BAD_PATHS.len(), "{errors:?}");
    for path in BAD_PATHS {
        assert!(
            errors.iter().any(|error| error.as_str().unwrap().contains(path)),
            "{path}: {errors:?}"
        );
    }
}

#[test]
fn daemons_refuse_a_bad_file_with_exit_code_2_before_they_touch_anything() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let file = write(&directory, &format!("control_socket: {}\n{BAD}", socket.display()));
    for role in ["run", "node"] {
        let output = vipline(&[role, "--config", &file]);
        assert_eq!(output.status.code(), Some(2), "{role}");
        let errors = text(&output.stderr);
        assert!(errors.contains(&file) && errors.contains("colour"), "{role}: {errors}");
        assert!(!socket.exists(), "{role}: no control socket");
    }
    let missing = directory.path().join("no-such-file.yaml");
    for args in [["run", "--config"], ["node", "--config"], ["check", "--config"]] {
        let output = vipline(&[args[0], args[1], missing.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains("No such file"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_workers_file_is_checked_as_one() {
    let directory = TempDir::new().unwrap();
    let file = write(
        &directory,
        "interfaces: [eth0]\nlb_sources: [192.0.2.1]\nvip_prefixes: [203.0.113.0/24]\n",
    );
    let output = vipline(&["check", "--node", "--config", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("1 LB sources, 1 VIP prefixes"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(
        vipline(&["check", "--config", &file]).status.code(),
        Some(2),
        "it is no LB node's"
    );
}

#[test]
fn the_examples_are_good() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let directory = TempDir::new().unwrap();
    let seed = directory.path().join("seed");
    fs::write(
        &seed,
        "9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7\n",
    )
    .unwrap();
    let lb = fs::read_to_string(examples.join("lb.yaml")).unwrap();
    let file = write(&directory, &lb.replace("/etc/vipline/seed", seed.to_str().unwrap()));
    let output = vipline(&["check", "--config", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let node = examples.join("node.yaml");
    let output = vipline(&["check", "--node", "--config", node.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn every_command_helps_and_a_wrong_command_line_is_exit_code_2() {
    for command in COMMANDS {
        let output = vipline(&["help", command]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(
            text(&output.stdout).contains("Usage:") || command == "help",
            "{command}"
        );
        assert_eq!(text(&output.stderr), "", "{command}");
    }
    let all = text(&vipline(&["--help"]).stdout);
    for command in COMMANDS {
        assert!(
            all.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}:\n{all}"
        );
    }
    assert!(all.contains("Exit codes"), "{all}");
    let version = vipline(&["--version"]);
    assert_eq!(
        text(&version.stdout),
        format!("vipline {}\n", env!("CARGO_PKG_VERSION"))
    );

    for wrong in [
        &[][..],
        &["frobnicate"],
        &["status", "--colour"],
        &["explain", "tcp", "192.0.2.1", "203.0.113.1:80"],
        &["explain", "sctp", "192.0.2.1:1", "203.0.113.1:80"],
        &["explain", "tcp", "192.0.2.1:1"],
        &["top", "--interval", "0"],
        &["counters", "-o", "xml"],
    ] {
        let output = vipline(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert_eq!(text(&output.stdout), "", "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
}

/// A daemon that answers each request with what `answer` makes of it; `None` hangs up.
struct Daemon {
    socket: PathBuf,
    _directory: TempDir,
}

impl Daemon {
    fn new(answer: impl Fn(&Value) -> Option<String> + Send + 'static) -> Self {
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                if let Some(answer) = serde_json::from_str(&line).ok().and_then(|request| answer(&request)) {
                    let _ = writeln!(&stream, "{answer}");
                }
            }
        });
        Self {
            socket,
            _directory: directory,
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("vipline runs")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.arg("--socket").arg(&self.socket);
        command
    }
}

/// As a daemon with some VIPs answers.
fn answer(request: &Value) -> Option<String> {
    let ok = match request["ask"].as_str()? {
        "status" => json!({
            "version": "0.1.0", "role": "lb", "pid": 7, "uptime_s": 3725, "config": "/etc/vipline/lb.yaml", "revision": 3,
            "last_reload": { "seconds_ago": 5, "error": "vips[0]: wrong\nseed: missing" },
            "interfaces": [{ "name": "eth0", "ifindex": 2, "mode": "generic", "native_refused": "not supported" }],
            "features": ["limits"], "vips": 1, "backends": 2, "backends_ready": 1, "tables": 1,
            "packets": [["forward", 12], ["pass", 3]],
        }),
        "vips" => json!(
            (0..2000)
                .map(|port| json!({
                    "address": "2001:db8::1", "protocol": "tcp", "port": port, "backends": 2, "ready": 1, "slots": 256,
                    "shared_by": 1, "limited": true, "allowed_sources": ["192.0.2.0/24"], "packets": 12, "bytes": 1500,
                }))
                .collect::<Vec<_>>()
        ),
        "backends" => json!([{
            "name": "worker-1", "address": "10.0.0.1", "next_hop": { "state": "unresolved", "reason": "no route" },
            "sets": [{ "vips": 1, "weight": 100, "slots": 64, "of": 256 }], "packets": 1, "bytes": 60,
        }]),
        "counters" => json!([
            { "fate": "forward", "reason": "tx", "packets": 12, "meaning": "Sent." },
            { "fate": "drop", "reason": "internal", "packets": 0, "meaning": "Never." },
        ]),
        "explain" => json!({
            "flow": "tcp", "fate": "forward", "reason": "tx", "meaning": request["source"], "vip": "a VIP", "slot": [256, 9],
            "backend": "worker-1", "address": "10.0.0.1", "next_hop": { "state": "local" },
        }),
        _ => return None,
    };
    Some(json!({ "ok": ok }).to_string())
}

#[test]
fn answers_are_tables_for_people_and_json_for_programs() {
    let daemon = Daemon::new(answer);
    for (args, words) in [
        (
            &["status"][..],
            &[
                "LB node",
                "REFUSED",
                "vips[0]: wrong",
                "seed: missing",
                "SLOW",
                "1 of 2 reachable",
            ][..],
        ),
        (&["vips"], &["[2001:db8::1]:1999", "1/2", "limits", "1 source ranges"]),
        (&["backends"], &["worker-1", "UNRESOLVED: no route", "25.0 %"]),
        (&["counters"], &["forward", "tx", "12"]),
        (
            &["explain", "tcp", "192.0.2.1:1", "203.0.113.1:80"],
            &["9 of 256", "worker-1 (10.0.0.1)", "this node"],
        ),
        (&["top", "-n", "1", "--interval", "0.1"], &["PACKETS/s"]),
    ] {
        let output = daemon.run(args);
        let table = text(&output.stdout);
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new()),
            "{args:?}"
        );
        for word in words {
            assert!(table.contains(word), "{args:?}: no {word} in:\n{table}");
        }
        let output = daemon.run(&[args, &["-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    }
    assert!(
        !text(&daemon.run(&["counters"]).stdout).contains("internal"),
        "only what was reached"
    );
    assert!(
        text(&daemon.run(&["counters", "--all"]).stdout).contains("internal"),
        "or all"
    );
    let json: Value = serde_json::from_slice(&daemon.run(&["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(
        (&json["role"], &json["packets"][0]),
        (&json!("lb"), &json!(["forward", 12]))
    );
}

#[test]
fn a_closed_pipe_ends_the_output_and_nothing_else() {
    let daemon = Daemon::new(answer);
    for args in [
        &["vips"][..],
        &["vips", "-o", "json"],
        &["status"],
        &["counters", "--all"],
        &["top", "--interval", "0.1"],
        &["top", "--interval", "0.1", "-o", "json"],
    ] {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let child = daemon
            .command(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new()),
            "{args:?}"
        );
    }
}

#[test]
fn a_daemon_that_cannot_be_asked_is_exit_code_1_with_a_word_of_what_to_do() {
    let directory = TempDir::new().unwrap();
    let nobody = directory.path().join("nobody.sock");
    let output = vipline(&["status", "--socket", nobody.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("nobody.sock") && error.contains("is `vipline run`"),
        "{error}"
    );
    assert_eq!(text(&output.stdout), "");

    let hangs_up = Daemon::new(|_| None);
    let garbage = Daemon::new(|_| Some("garbage".to_owned()));
    let other_shape = Daemon::new(|_| Some(json!({ "ok": { "colour": "blue" } }).to_string()));
    let refuses = Daemon::new(|_| Some(json!({ "error": "not today" }).to_string()));
    for (daemon, word) in [
        (hangs_up, "did not answer"),
        (garbage, "another version"),
        (other_shape, "another version"),
        (refuses, "not today"),
    ] {
        let output = daemon.run(&["status"]);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(
            error.starts_with("vipline: ") && error.contains(word),
            "{word}: {error}"
        );
        let causes: Vec<_> = error.trim_end().split(": ").collect();
        assert!(
            causes.windows(2).all(|pair| pair[0] != pair[1]),
            "every cause once: {error}"
        );
    }
}

#[test]
fn a_daemon_that_hangs_up_before_it_is_asked_is_no_success() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Dropped at once: the question meets a closed socket, or the answer does, as it happens.
    thread::spawn(move || listener.incoming().for_each(drop));
    for _ in 0..20 {
        let output = vipline(&["status", "--socket", socket.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("did not answer"),
            "{}",
            text(&output.stderr)
        );
    }
}

/// Through HTTP to an API server: its double.
#[test]
fn a_node_of_a_cluster_is_drained_for_all_lb_nodes_by_its_label() {
    let server = apiserver::ApiServer::builder().start();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1", "labels": {"zone": "a"}}});
    server.create(node).expect("a node");
    let directory = TempDir::new().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig()).expect("a file");
    let kubeconfig = kubeconfig.to_str().expect("UTF-8");
    let drain = |name: &str, more: &[&str]| {
        vipline(&[&["drain", "backend", name, "--kube", "--kubeconfig", kubeconfig], more].concat())
    };
    let labels = || server.read("nodes", "", "worker-1").expect("a node")["metadata"]["labels"].clone();

    let output = drain("worker-1", &["-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said, json!({"node": "worker-1", "excluded": true, "changed": true}));
    let excluded = json!({"zone": "a", "node.kubernetes.io/exclude-from-external-load-balancers": "true"});
    assert_eq!(labels(), excluded);
    let writes = server.writes().of("*", "nodes", "*");
    let output = drain("worker-1", &[]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("already"),
        "{output:?}"
    );
    assert_eq!(server.writes().of("*", "nodes", "*"), writes, "nothing to write");
    assert!(drain("worker-1", &["--undo"]).status.success());
    assert_eq!(labels(), json!({"zone": "a"}));

    // A deadline stands beside the label: a second word keeps it unless it has one of its own, and the end takes it away.
    let deadline = || {
        let node = server.read("nodes", "", "worker-1").expect("a node");
        let text = node["metadata"]["annotations"]["vipline.dev/drain-deadline"]
            .as_str()?
            .to_owned();
        Some(text.parse::<jiff::Timestamp>().expect("RFC 3339").as_second())
    };
    assert_eq!(deadline(), None);
    let before = jiff::Timestamp::now().as_second();
    let output = drain("worker-1", &["--deadline", "10m"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains(" until 20"), "{output:?}");
    assert_eq!(labels(), excluded);
    let first = deadline().expect("a deadline");
    assert!((before + 600..before + 660).contains(&first), "{first}");
    let output = drain("worker-1", &[]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("already"),
        "{output:?}"
    );
    assert_eq!(deadline(), Some(first));
    assert!(drain("worker-1", &["--now"]).status.success());
    assert!((before..before + 60).contains(&deadline().expect("a deadline")));
    assert!(drain("worker-1", &["--undo"]).status.success());
    assert_eq!((labels(), deadline()), (json!({"zone": "a"}), None));

    let output = drain("worker-9", &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("worker-9") && error.contains("kubectl get nodes"),
        "{error}"
    );
    server.faults().fail_always("*", "nodes", 403);
    let output = drain("worker-1", &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("did not change node worker-1"),
        "{error}"
    );
}
