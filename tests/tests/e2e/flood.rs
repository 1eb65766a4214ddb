//! Clients of the API that want to use it up: HTTP/2 frames by hand, since no client library sends such.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use k8s_cri::v1::VersionRequest;
use sampan_tests::{Agent, with_agent};

use super::SOON;

/// More than any client needs.
const FLOOD: u32 = 60_000;
/// What an attack may cost the agent. Calls that wait for their bodies are as many as the agent allows, and each of them is
/// forty times as large when nothing is optimized.
const GROWTH: u64 = if cfg!(debug_assertions) { 640 << 20 } else { 32 << 20 };

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of a call whose body never comes, in HPACK without compression.
fn head() -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, 30];
    block.extend(b"/runtime.v1.RuntimeService/Exec");
    block[3] = u8::try_from(block.len() - 4).unwrap();
    block.extend([0x01, 1, b'x', 0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    block
}

fn attack(agent: &Agent) -> UnixStream {
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    socket.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    socket
}

/// Sends frames until the agent takes no more, or there are none; true when the agent ended the connection.
fn send(mut socket: UnixStream, frames: impl Iterator<Item = Vec<u8>>) -> bool {
    let mut answers = vec![0; 64 << 10];
    for (number, frame) in frames.enumerate() {
        match socket.write_all(&frame) {
            Ok(()) => {}
            // It does not read: what it holds is bounded.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => return true,
        }
        if number % 1000 == 0 {
            match socket.read(&mut answers) {
                Ok(0) => return true,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                _ => {}
            }
        }
    }
    false
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_cost_little_memory_and_no_other_client_its_answers() {
    with_agent(async |agent| {
        let ids = |number: u32| 2 * number + 1;
        let resets = (0..FLOOD).map(|number| {
            let mut both = frame(HEADERS, END_HEADERS, ids(number), &head());
            both.extend(frame(RST_STREAM, 0, ids(number), &8_u32.to_be_bytes()));
            both
        });
        let opens = (0..FLOOD).map(|number| frame(HEADERS, END_HEADERS, ids(number), &head()));
        let pings = (0..FLOOD).map(|number| frame(PING, 0, 0, &u64::from(number).to_be_bytes()));
        let settings = (0..FLOOD).map(|_| frame(SETTINGS, 0, 0, &[]));
        let before = resident(agent.scope().pid);
        let sockets: Vec<_> = (0..4).map(|_| attack(agent)).collect();
        let [one, two, three, four]: [UnixStream; 4] = sockets.try_into().unwrap();
        let attackers = [
            std::thread::spawn({
                let frames: Vec<_> = resets.collect();
                move || send(one, frames.into_iter())
            }),
            std::thread::spawn({
                let frames: Vec<_> = opens.collect();
                move || send(two, frames.into_iter())
            }),
            std::thread::spawn({
                let frames: Vec<_> = pings.collect();
                move || send(three, frames.into_iter())
            }),
            std::thread::spawn({
                let frames: Vec<_> = settings.collect();
                move || send(four, frames.into_iter())
            }),
        ];
        let (mut runtime, mut slowest) = (agent.cri().runtime, Duration::ZERO);
        while !attackers.iter().all(std::thread::JoinHandle::is_finished) {
            let start = Instant::now();
            runtime.version(VersionRequest::default()).await.expect("an answer all the same");
            slowest = slowest.max(start.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ended = attackers.map(|attacker| attacker.join().unwrap());
        assert!(ended[0], "who opens and resets without end is cut off");
        assert!(slowest < SOON, "{slowest:?}");
        let grown = resident(agent.scope().pid).saturating_sub(before);
        assert!(grown <= GROWTH, "{} MiB more", grown >> 20);
    })
    .await;
}
