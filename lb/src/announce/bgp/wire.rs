//! One connection: bytes in, bytes out.
//!
//! Never reads faster than its session hears, and never keeps more for a peer that does not read than [`MAX_UNSENT_BYTES`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_core::bgp::{ConnectionId, TransportError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::socket;

/// What one read brings at most.
const READ_BYTES: usize = 16 * 1024;
/// What waits to be sent to one peer: several whole tables.
const MAX_UNSENT_BYTES: usize = 8 << 20;
/// Longest wait for a peer to take what was written (RFC 9687 4.1: longer than a hold time, so that the peer may end it first).
const SEND_HOLD: Duration = Duration::from_secs(480);
/// Longest wait for a peer to take the last words.
const LINGER: Duration = Duration::from_secs(1);

/// What a connection says.
#[derive(Debug)]
pub(super) enum Heard {
    /// It was made; `Err`: it was not.
    Connected(ConnectionId, Result<TcpStream, TransportError>),
    Bytes(ConnectionId, Vec<u8>),
    Closed(ConnectionId),
    Failed(ConnectionId, TransportError),
}

/// A connection that is there. Dropping it ends both directions at once.
#[derive(Debug)]
pub(super) struct Wire {
    unsent: Arc<AtomicUsize>,
    bytes: mpsc::UnboundedSender<Vec<u8>>,
    reader: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

impl Wire {
    pub(super) fn new(id: ConnectionId, stream: TcpStream, heard: mpsc::Sender<Heard>) -> Self {
        // Small messages are whole ones; it fails on no TCP socket.
        let _ = stream.set_nodelay(true);
        let (reading, writing) = stream.into_split();
        let (bytes, inbox) = mpsc::unbounded_channel();
        let unsent = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn(read(id, reading, heard.clone()));
        let writer = tokio::spawn(write(id, writing, inbox, Arc::clone(&unsent), heard));
        Self {
            unsent,
            bytes,
            reader: Some(reader),
            writer: Some(writer),
        }
    }

    /// Sends; `false`: too much waits already, and the peer reads nothing.
    pub(super) fn send(&self, bytes: Vec<u8>) -> bool {
        let unsent = self.unsent.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        // It fails where the writer has failed, which it says itself.
        let _ = self.bytes.send(bytes);
        unsent <= MAX_UNSENT_BYTES
    }

    /// Closes it when all is sent; wait for what is returned to know.
    pub(super) fn close(mut self) -> Option<JoinHandle<()>> {
        let (reader, writer) = (self.reader.take()?, self.writer.take()?);
        drop(self);
        Some(tokio::spawn(async move {
            // They end by themselves, and panic for no reason.
            let _ = writer.await;
            // What comes meanwhile is read: the kernel would answer it with a reset, which can overtake the last words.
            let abort = reader.abort_handle();
            if timeout(LINGER, reader).await.is_err() {
                abort.abort();
            }
        }))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for direction in [&self.reader, &self.writer].into_iter().flatten() {
            direction.abort();
        }
    }
}

async fn read(id: ConnectionId, mut stream: OwnedReadHalf, heard: mpsc::Sender<Heard>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let said = match stream.read(&mut buffer).await {
            Ok(0) => Heard::Closed(id),
            Ok(count) => Heard::Bytes(id, buffer.get(..count).unwrap_or_default().to_vec()),
            Err(error) => Heard::Failed(id, socket::transport(error)),
        };
        let is_last = !matches!(said, Heard::Bytes(..));
        if heard.send(said).await.is_err() || is_last {
            return;
        }
    }
}

async fn write(
    id: ConnectionId,
    mut stream: OwnedWriteHalf,
    mut inbox: mpsc::UnboundedReceiver<Vec<u8>>,
    unsent: Arc<AtomicUsize>,
    heard: mpsc::Sender<Heard>,
) {
    while let Some(bytes) = inbox.recv().await {
        // Nobody sends any more: these are the last words.
        let patience = if inbox.is_closed() { LINGER } else { SEND_HOLD };
        let why = match timeout(patience, stream.write_all(&bytes)).await {
            Ok(Ok(())) => {
                unsent.fetch_sub(bytes.len(), Ordering::Relaxed);
                continue;
            }
            Ok(Err(error)) => socket::transport(error),
            Err(_) => TransportError::Stalled,
        };
        // Nobody hears it after a close.
        let _ = heard.send(Heard::Failed(id, why)).await;
        return;
    }
    let _ = timeout(LINGER, stream.shutdown()).await;
}

#[cfg(test)]
mod tests {
    use lb_core::bgp::Origin;
    use tokio::net::TcpListener;

    use super::*;

    const ID: ConnectionId = ConnectionId {
        origin: Origin::Ours,
        number: 1,
    };

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (one, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn for_a_peer_that_does_not_read_no_more_than_so_much_is_kept() {
        let (ours, _theirs) = pair().await;
        let (heard, _inbox) = mpsc::channel(4);
        let wire = Wire::new(ID, ours, heard);
        let chunks = (1..).take_while(|_| wire.send(vec![0; 64 * 1024])).count();
        tokio::task::yield_now().await;
        // Nothing was sent yet, and this is what may wait.
        assert_eq!(chunks, MAX_UNSENT_BYTES / (64 * 1024));
        while wire.send(vec![0; 64 * 1024]) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn last_words_arrive_before_the_end_though_the_peer_talks() {
        let (ours, mut theirs) = pair().await;
        let (heard, _inbox) = mpsc::channel(4);
        let wire = Wire::new(ID, ours, heard);
        theirs.write_all(b"more than anyone reads").await.unwrap();
        assert!(wire.send(b"goodbye".to_vec()));
        let closing = wire.close().unwrap();
        let mut words = String::new();
        theirs.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "goodbye");
        drop(theirs);
        closing.await.unwrap();
    }
}
