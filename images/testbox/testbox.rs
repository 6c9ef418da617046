//! `testbox`: what the end-to-end tests run in pods. Servers that answer who they are, clients that count what fails, and
//! ways to misbehave. Only the standard library, linked statically, so that it runs in any image.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    process::{ExitCode, exit},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const HELP: &str = "testbox serve [--port N] [--drain SECONDS] [--verbose]   HTTP and UDP on a port; SIGTERM: answer on, then end
testbox get URL [--timeout SECONDS]           the body of one answer; fails unless 200
testbox udp HOST:PORT [WORDS]                 the answer to one datagram
testbox load URL [--seconds N] [--clients N] [--pause MS] [--keep-alive]   a JSON count of answers by who gave them, and of failures
testbox hold URL                              one connection; a line per answered request, until it breaks
testbox resolve NAME                          addresses by the C library's resolver
testbox eat MEBIBYTES                         takes memory and keeps it
testbox sleep SECONDS | exit CODE | print WORDS...";

/// Requests that are being answered.
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// SIGTERM has come.
static ENDING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    safe fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn on_term(_: i32) {
    ENDING.store(true, Ordering::SeqCst);
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let rest = words.get(1..).unwrap_or_default();
    let result = match words.first().map(String::as_str) {
        Some("serve") => serve(rest),
        Some("get") => get(rest),
        Some("udp") => udp(rest),
        Some("load") => load(rest),
        Some("hold") => hold(rest),
        Some("resolve") => resolve(rest),
        Some("eat") => eat(rest),
        Some("sleep") => {
            end_on_term();
            thread::sleep(Duration::from_secs(number(rest, 0, 1)));
            Ok(())
        }
        Some("exit") => exit(number(rest, 0, 0) as i32),
        Some("print") => {
            println!("{}", rest.join(" "));
            Ok(())
        }
        _ => Err(HELP.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Result<T> = std::result::Result<T, String>;

fn said<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

fn option(words: &[String], name: &str, default: u64) -> u64 {
    let at = words.iter().position(|it| it == name);
    at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(default)
}

fn number(words: &[String], at: usize, default: u64) -> u64 {
    words.get(at).and_then(|it| it.parse().ok()).unwrap_or(default)
}

/// Process 1 of a container is ended by SIGTERM only if it has a handler.
fn end_on_term() {
    extern "C" fn end(_: i32) {
        exit(143);
    }
    signal(15, end);
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn serve(words: &[String]) -> Result<()> {
    signal(15, on_term);
    let (port, drain) = (option(words, "--port", 8080) as u16, option(words, "--drain", 0));
    let verbose = words.iter().any(|it| it == "--verbose");
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(said("tcp"))?;
    let socket = UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)));
    let socket = socket.map_err(said("udp"))?;
    println!("serving on {port}");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let _ = socket.send_to(format!("{} {} {text}", host(), from.ip().to_canonical()).as_bytes(), from);
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream, verbose));
        }
    });
    while !ENDING.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(10));
    }
    println!("ending");
    // New requests come until everybody knows that this endpoint ends.
    thread::sleep(Duration::from_secs(drain));
    while BUSY.load(Ordering::SeqCst) > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Answers requests on one connection until it ends.
fn answer(stream: &TcpStream, verbose: bool) {
    let peer = stream.peer_addr().map(|it| it.ip().to_canonical().to_string()).unwrap_or_default();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if !reader.read_line(&mut line).is_ok_and(|read| read > 0) {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            if !reader.read_line(&mut header).is_ok_and(|read| read > 0) {
                return;
            }
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        BUSY.fetch_add(1, Ordering::SeqCst);
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        if verbose {
            println!("{peer} {}", line.trim());
        }
        let (code, text) = match path {
            "/healthz" if fs::exists("/tmp/unhealthy").unwrap_or(false) => (503, "unhealthy".into()),
            "/readyz" if fs::exists("/tmp/unready").unwrap_or(false) => (503, "unready".into()),
            "/env" => (200, env::var(query).unwrap_or_default()),
            "/file" => fs::read_to_string(query).map_or((404, String::new()), |text| (200, text)),
            "/who" => (200, format!("{} {peer}", host())),
            "/slow" => {
                thread::sleep(Duration::from_millis(query.parse().unwrap_or(1000)));
                (200, host())
            }
            _ => (200, host()),
        };
        let last = if ENDING.load(Ordering::SeqCst) { "connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {code} x\r\ncontent-length: {}\r\n{last}\r\n", text.len());
        let written = (&mut &*stream).write_all(format!("{head}{text}").as_bytes());
        BUSY.fetch_sub(1, Ordering::SeqCst);
        if written.is_err() || !last.is_empty() {
            return;
        }
    }
}

/// Host with port, and path, of a URL.
fn parts(url: &str) -> (String, String) {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, path.to_owned()));
    let bare = host.rsplit_once(':').is_none_or(|(_, port)| port.ends_with(']'));
    let host = if bare { format!("{host}:80") } else { host.to_owned() };
    (host, format!("/{path}"))
}

fn connect(host: &str, timeout: Duration) -> Result<TcpStream> {
    let address = host.to_socket_addrs().map_err(said(host))?.next().ok_or("no address")?;
    let stream = TcpStream::connect_timeout(&address, timeout).map_err(said("connect"))?;
    stream.set_read_timeout(Some(timeout)).map_err(said("timeout"))?;
    stream.set_nodelay(true).map_err(said("nodelay"))?;
    Ok(stream)
}

/// One request; code, body, and whether the connection goes on.
fn ask(reader: &mut BufReader<TcpStream>, host: &str, path: &str) -> Result<(u16, String, bool)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    reader.get_mut().write_all(request.as_bytes()).map_err(said("send"))?;
    let mut line = String::new();
    if reader.read_line(&mut line).map_err(said("receive"))? == 0 {
        return Err("closed before an answer".into());
    }
    let code = line.split(' ').nth(1).and_then(|it| it.parse().ok()).ok_or("no HTTP answer")?;
    let (mut length, mut goes_on) = (None, true);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).map_err(said("receive"))? == 0 {
            return Err("closed within an answer".into());
        }
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
        goes_on &= header != "connection: close";
    }
    let mut body = Vec::new();
    match length {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body).map_err(said("receive"))?;
        }
        None => {
            goes_on = false;
            reader.read_to_end(&mut body).map_err(said("receive"))?;
        }
    }
    Ok((code, String::from_utf8_lossy(&body).into_owned(), goes_on))
}

fn get(words: &[String]) -> Result<()> {
    let (host, path) = parts(words.first().ok_or(HELP)?);
    let stream = connect(&host, Duration::from_secs(option(words, "--timeout", 5)))?;
    let (code, body, _) = ask(&mut BufReader::new(stream), &host, &path)?;
    println!("{body}");
    if code == 200 { Ok(()) } else { Err(format!("code {code}")) }
}

fn udp(words: &[String]) -> Result<()> {
    let to = words.first().ok_or(HELP)?;
    let address = to.to_socket_addrs().map_err(said(to))?.next().ok_or("no address")?;
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).map_err(said("bind"))?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(said("timeout"))?;
    socket.send_to(words[1..].join(" ").as_bytes(), address).map_err(said("send"))?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).map_err(said("receive"))?;
    if from != address {
        return Err(format!("asked {address}, {from} answered"));
    }
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

fn load(words: &[String]) -> Result<()> {
    let url = words.first().ok_or(HELP)?;
    let (host, path) = parts(url);
    let end = Instant::now() + Duration::from_secs(option(words, "--seconds", 5));
    let keep = words.iter().any(|it| it == "--keep-alive");
    let pause = Duration::from_millis(option(words, "--pause", 0));
    let counts: Arc<Mutex<(BTreeMap<String, usize>, BTreeMap<String, usize>)>> = Arc::default();
    signal(15, on_term);
    let clients: Vec<_> = (0..option(words, "--clients", 4))
        .map(|_| {
            let (host, path, counts) = (host.clone(), path.clone(), Arc::clone(&counts));
            thread::spawn(move || {
                let mut open: Option<BufReader<TcpStream>> = None;
                while Instant::now() < end && !ENDING.load(Ordering::SeqCst) {
                    let result = (|| {
                        let mut reader = match open.take() {
                            Some(reader) => reader,
                            None => BufReader::new(connect(&host, Duration::from_secs(5))?),
                        };
                        let (code, body, goes_on) = ask(&mut reader, &host, &path)?;
                        if keep && goes_on {
                            open = Some(reader);
                        }
                        if code == 200 { Ok(body) } else { Err(format!("code {code}")) }
                    })();
                    let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match result {
                        Ok(who) => *counts.0.entry(who).or_default() += 1,
                        Err(error) => *counts.1.entry(error).or_default() += 1,
                    }
                    drop(counts);
                    thread::sleep(pause);
                }
            })
        })
        .collect();
    for client in clients {
        let _ = client.join();
    }
    let counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let list = |map: &BTreeMap<String, usize>| {
        let pairs: Vec<String> = map.iter().map(|(key, count)| format!("{key:?}:{count}")).collect();
        format!("{{{}}}", pairs.join(","))
    };
    println!(
        "{{\"ok\":{},\"failed\":{},\"by\":{},\"errors\":{}}}",
        counts.0.values().sum::<usize>(),
        counts.1.values().sum::<usize>(),
        list(&counts.0),
        list(&counts.1)
    );
    Ok(())
}

fn hold(words: &[String]) -> Result<()> {
    end_on_term();
    let (host, path) = parts(words.first().ok_or(HELP)?);
    let mut reader = BufReader::new(connect(&host, Duration::from_secs(30))?);
    loop {
        let (_, body, goes_on) = ask(&mut reader, &host, &path)?;
        println!("{body}");
        if !goes_on {
            return Err("the server ends the connection".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn resolve(words: &[String]) -> Result<()> {
    let name = words.first().ok_or(HELP)?;
    let mut found: Vec<String> = (name.as_str(), 0)
        .to_socket_addrs()
        .map_err(said(name))?
        .map(|it| it.ip().to_string())
        .collect();
    found.sort();
    found.dedup();
    println!("{}", found.join(" "));
    Ok(())
}

fn eat(words: &[String]) -> Result<()> {
    end_on_term();
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for _ in 0..number(words, 0, 16) {
        let mut page = vec![1u8; 1 << 20];
        page.iter_mut().step_by(4096).for_each(|it| *it = 2);
        eaten.push(page);
    }
    println!("ate {} MiB", eaten.len());
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
