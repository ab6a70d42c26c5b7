//! Servers that answer as they are told to. Never a test.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Self-signed for `expired.example`, valid for a day of 2020.
const PEM: &[u8] = include_bytes!("expired.pem");

/// What a connection gets.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These bytes after the first that it sends, and the end.
    Bytes(Vec<u8>),
    /// The same over TLS.
    Tls(Vec<u8>),
    /// Nothing, for as long as the server lives.
    Never,
}

/// A server; its connections end with it.
pub(crate) struct Server {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: Answer) -> Self {
        Self::start_at(answer, (Ipv4Addr::LOCALHOST, 0).into())
    }

    pub(crate) fn start_at(answer: Answer, at: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).expect("a free port");
        let at = listener.local_addr().expect("an address");
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let serving = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&listener, &answer, &serving.0, &serving.1));
        Self {
            at,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.at.port()
    }

    /// The first connection's first bytes.
    pub(crate) fn asked(&self) -> String {
        String::from_utf8_lossy(&self.asked.lock().expect("no poison")).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accept.
        let _ = TcpStream::connect(self.at);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A port that nobody listens at.
pub(crate) fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn serve(listener: &TcpListener, answer: &Answer, asked: &Mutex<Vec<u8>>, stop: &AtomicBool) {
    let mut open = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        // Whoever asks may be gone at any time.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        match answer {
            Answer::Never => open.push(stream),
            Answer::Bytes(bytes) => reply(stream, bytes, asked),
            Answer::Tls(bytes) => {
                let session = ServerConnection::new(tls()).expect("a configuration");
                reply(StreamOwned::new(session, stream), bytes, asked);
            }
        }
    }
}

fn reply(mut stream: impl std::io::Read + std::io::Write, bytes: &[u8], asked: &Mutex<Vec<u8>>) {
    let mut request = [0; 4096];
    let read = stream.read(&mut request).unwrap_or_default();
    let mut asked = asked.lock().expect("no poison");
    if asked.is_empty() {
        asked.extend_from_slice(&request[..read]);
    }
    let _ = stream.write_all(bytes);
    let _ = stream.flush();
}

fn tls() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(PEM).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(PEM).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key));
    Arc::new(config.expect("a configuration"))
}
