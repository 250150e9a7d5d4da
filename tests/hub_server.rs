//! A fake hub on this machine, with the part of the hub's API that downloads need. It misbehaves on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use serde_json::json;
use sha2::{Digest, Sha256};

/// A hub with a second address for large files, like the public one.
pub struct FakeHub {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
}

/// The content and behaviour of a fake hub.
#[derive(Default)]
pub struct Behaviour {
    /// Repositories by `org/name`.
    pub repositories: BTreeMap<String, Repository>,
    /// The required token. Without it, or with another, nothing is shown.
    pub token: Option<String>,
    /// Ranges are ignored: the whole file is sent.
    pub without_ranges: bool,
    /// Large files are sent up to this byte, then the connection is cut; this many times.
    pub cut: Option<(usize, usize)>,
    /// Every request is answered with this status.
    pub status: Option<u16>,
    /// The ETag of every file.
    pub etag: Option<String>,
}

#[derive(Clone, Default)]
pub struct Repository {
    /// Its only commit.
    pub commit: String,
    /// Its branches and tags; all point to the commit.
    pub revisions: Vec<String>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Everyone sees its description, but nobody may download its files: no conditions were accepted.
    pub gated: bool,
}

/// A request and what was sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether it went to the second address.
    pub elsewhere: bool,
    pub path: String,
    /// The bytes requested.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The status of the response.
    pub status: u16,
    /// Bytes of the response's body.
    pub sent: usize,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
    over: AtomicBool,
    addresses: [String; 2],
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes after which the connection is cut.
    cut: Option<usize>,
}

/// Whether the public hub would keep a file in large-file storage.
fn is_large(name: &str) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    extension == "safetensors" || extension == "gguf"
}

/// The hub's name for a content: its SHA-256 in large-file storage, otherwise 40 digits.
pub fn etag(name: &str, content: &[u8]) -> String {
    let hash = format!("{:x}", Sha256::digest(content));
    if is_large(name) { hash } else { hash[..40].to_owned() }
}

impl Repository {
    /// A repository with these files, at a commit computed from their names, as `main`.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let files: BTreeMap<String, Vec<u8>> =
            files.into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        let commit = format!("{:x}", Sha256::digest(names.join("\n")))[..40].to_owned();
        Self { commit, revisions: vec!["main".to_owned()], files, gated: false }
    }
}

impl FakeHub {
    /// A hub with one repository.
    pub fn with(name: &str, repository: Repository) -> Self {
        let bound = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|index: usize| format!("http://{}", bound[index].local_addr().unwrap()));
        let repositories = [(name.to_owned(), repository)].into();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Behaviour { repositories, ..Behaviour::default() }),
            requests: Mutex::default(),
            over: AtomicBool::new(false),
            addresses,
        });
        let listeners = bound
            .into_iter()
            .enumerate()
            .map(|(index, listener)| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.listen(&listener, index == 1))
            })
            .collect();
        Self { shared, listeners }
    }

    pub fn endpoint(&self) -> &str {
        &self.shared.addresses[0]
    }

    /// Its content and behaviour, to be changed.
    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.behaviour.lock().unwrap()
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        let mut requests = self.shared.requests.lock().unwrap();
        std::mem::take(&mut *requests)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for address in &self.shared.addresses {
            // Wakes the thread that waits for a connection.
            let _ = TcpStream::connect(address.trim_start_matches("http://"));
        }
        for listener in self.listeners.drain(..) {
            // An error of that thread no longer matters.
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener, elsewhere: bool) {
        for connection in listener.incoming() {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let shared = Arc::clone(self);
            // A client may disconnect at any time.
            thread::spawn(move || connection.and_then(|connection| shared.serve(connection, elsewhere)));
        }
    }

    fn serve(&self, mut connection: TcpStream, elsewhere: bool) -> std::io::Result<()> {
        let mut lines = BufReader::new(connection.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let Some(path) = first.split(' ').nth(1).map(str::to_owned) else { return Ok(()) };
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let (range, authorization) = (headers.remove("range"), headers.remove("authorization"));
        let answer = self.answer(&path, range.as_deref(), authorization.as_deref(), elsewhere);
        let sent = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        let status = answer.status;
        self.requests.lock().unwrap().push(Request { elsewhere, path, range, authorization, status, sent });
        let mut head = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\n");
        for (name, value) in answer.headers {
            head += &header(name, &value);
        }
        head += &header("Content-Length", &answer.body.len().to_string());
        head += "\r\n";
        connection.write_all(head.as_bytes())?;
        connection.write_all(&answer.body[..sent])?;
        connection.shutdown(Shutdown::Write)
    }

    fn answer(
        &self,
        path: &str,
        range: Option<&str>,
        authorization: Option<&str>,
        elsewhere: bool,
    ) -> Answer {
        let mut behaviour = self.behaviour.lock().unwrap();
        if let Some(status) = behaviour.status {
            return refused(status, "");
        }
        if elsewhere {
            return large(&mut behaviour, path, range);
        }
        let expected = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
        if expected.is_some() && authorization != expected.as_deref() {
            return refused(401, if authorization.is_some() { "" } else { "RepoNotFound" });
        }
        if let Some(asked) = path.strip_prefix("/api/models/") {
            return describe(&behaviour, asked);
        }
        self.file(&behaviour, path, range)
    }

    fn file(&self, behaviour: &Behaviour, path: &str, range: Option<&str>) -> Answer {
        let (name, repository, file) = match parts(behaviour, path) {
            Ok(parts) => parts,
            Err(answer) => return answer,
        };
        if repository.gated {
            return refused(403, "GatedRepo");
        }
        let Some(content) = repository.files.get(file) else { return refused(404, "EntryNotFound") };
        let etag = behaviour.etag.clone().unwrap_or_else(|| etag(file, content));
        let commit = ("X-Repo-Commit", repository.commit.clone());
        if !is_large(file) {
            let mut answer = content_answer(content, range, behaviour.without_ranges);
            answer.headers.extend([commit, ("ETag", format!("\"{etag}\""))]);
            return answer;
        }
        let location = format!("{}/{name}/{file}?signature=valid", self.addresses[1]);
        let headers = vec![
            commit,
            ("Location", location),
            ("X-Linked-ETag", format!("\"{etag}\"")),
            ("X-Linked-Size", content.len().to_string()),
        ];
        Answer { status: 302, headers, body: Vec::new(), cut: None }
    }
}

/// `org/name/resolve/COMMIT/FILE`.
fn parts<'a>(behaviour: &'a Behaviour, path: &'a str) -> Result<(&'a str, &'a Repository, &'a str), Answer> {
    let (name, rest) = path[1..].split_once("/resolve/").ok_or_else(|| refused(404, "RepoNotFound"))?;
    let repository = behaviour.repositories.get(name).ok_or_else(|| refused(404, "RepoNotFound"))?;
    let (revision, file) = rest.split_once('/').ok_or_else(|| refused(404, "EntryNotFound"))?;
    if revision != repository.commit {
        return Err(refused(404, "RevisionNotFound"));
    }
    Ok((name, repository, file))
}

/// `org/name/revision/REVISION`.
fn describe(behaviour: &Behaviour, asked: &str) -> Answer {
    let (name, revision) = asked.split_once("/revision/").unwrap_or((asked, "main"));
    let Some(repository) = behaviour.repositories.get(name) else { return refused(404, "RepoNotFound") };
    // A slash within a revision is escaped, unlike those of the path.
    let revision = if revision.contains('/') { "" } else { &revision.replace("%2F", "/") };
    if revision != repository.commit && !repository.revisions.iter().any(|known| known == revision) {
        return refused(404, "RevisionNotFound");
    }
    let siblings: Vec<_> = repository.files.keys().map(|name| json!({ "rfilename": name })).collect();
    let body = json!({
        "id": name, "sha": repository.commit, "private": false, "gated": repository.gated, "siblings": siblings,
    });
    let headers = vec![("Content-Type", "application/json".to_owned())];
    Answer { status: 200, headers, body: body.to_string().into_bytes(), cut: None }
}

/// The second address: `org/name/FILE?signature=valid`, no headers of the hub.
fn large(behaviour: &mut Behaviour, path: &str, range: Option<&str>) -> Answer {
    let Some(place) = path.strip_suffix("?signature=valid") else { return refused(403, "") };
    let (name, file) = place[1..].rsplit_once('/').unwrap_or_default();
    let Some(content) = behaviour.repositories.get(name).and_then(|found| found.files.get(file)) else {
        return refused(404, "");
    };
    let mut answer = content_answer(content, range, behaviour.without_ranges);
    answer.headers.push(("ETag", "\"elsewhere\"".to_owned()));
    if let Some((at, times @ 1..)) = &mut behaviour.cut {
        *times -= 1;
        let start = content.len() - answer.body.len();
        answer.cut = Some(at.saturating_sub(start));
    }
    answer
}

fn content_answer(content: &[u8], range: Option<&str>, without_ranges: bool) -> Answer {
    let bounds = range.filter(|_| !without_ranges).and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = content.len().checked_sub(1)?;
        Some((start.parse::<usize>().ok()?, end.parse().map_or(last, |end: usize| end.min(last))))
    });
    let whole = content.len();
    match bounds {
        None => Answer { status: 200, headers: Vec::new(), body: content.to_vec(), cut: None },
        Some((start, end)) if start <= end => Answer {
            status: 206,
            headers: vec![("Content-Range", format!("bytes {start}-{end}/{whole}"))],
            body: content[start..=end].to_vec(),
            cut: None,
        },
        Some(_) => Answer {
            status: 416,
            headers: vec![("Content-Range", format!("bytes */{whole}"))],
            body: Vec::new(),
            cut: None,
        },
    }
}

fn header(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

fn refused(status: u16, code: &str) -> Answer {
    // A hub may send any message; none of it may reach the screen.
    let mut headers = vec![("X-Error-Message", "message of the server".to_owned())];
    if !code.is_empty() {
        headers.push(("X-Error-Code", code.to_owned()));
    }
    Answer { status, headers, body: b"\x1b[2J<html>message of the server</html>".to_vec(), cut: None }
}
