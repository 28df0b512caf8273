//! Chromium without a window, driven through its debugging pipe
//! (<https://chromedevtools.github.io/devtools-protocol/>): no port, no library.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// After this long without an answer the browser hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the browser says when the page that is asked gives way to another.
const NAVIGATED: &str = "Inspected target navigated or closed";

/// The browser, if there is one; `None` and the reason on standard error where
/// there is none, unless `ASPEN_REQUIRE_ALL_TESTS=1` makes it a failure.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|dir| {
            ["chromium", "chromium-browser", "google-chrome"].map(|name| dir.join(name))
        })
        .find(|program| program.is_file());
    if found.is_none() {
        assert!(!super::all_tests_required(), "there is no Chromium");
        // Not eprintln: the harness would keep that from whoever runs the tests.
        let _ = writeln!(std::io::stderr(), "skipped, needs Chromium");
    }
    found
}

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    asked: u64,
    /// What went wrong in the page: exceptions, errors in the console, what the
    /// policy forbade. That a request was answered 401 or 503 is none of these.
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens an empty page.
    pub(crate) fn open() -> Option<Self> {
        let program = program()?;
        let profile = tempfile::tempdir().unwrap();
        // The browser reads from descriptor 3 and writes to 4.
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            ])
            .arg(program)
            .args([
                "--headless=new",
                // It runs as root in continuous integration, and opens nothing but our own page.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let mut messages = BufReader::new(child.stdout.take().unwrap());
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while messages.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                if sender
                    .send(serde_json::from_slice(&message).unwrap())
                    .is_err()
                {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            to,
            from,
            session: String::new(),
            asked: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let answer = self.ask(method, parameters);
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The result, or else the error.
    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.asked += 1;
        let id = self.asked;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let mut answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
            if answer["id"] == id {
                return match answer["error"].is_null() {
                    true => Ok(answer["result"].take()),
                    false => Err(answer["error"].take()),
                };
            }
            self.listen(&answer);
        }
    }

    fn listen(&mut self, event: &Value) {
        let about = &event["params"];
        let wrong = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                about["type"] == "error" || about["type"] == "warning"
            }
            Some("Log.entryAdded") => {
                about["entry"]["level"] == "error" && about["entry"]["source"] != "network"
            }
            _ => false,
        };
        if wrong {
            self.complaints.push(about.to_string());
        }
    }

    /// How the page is looked at: `light` or `dark`, and how wide.
    pub(crate) fn look(&mut self, scheme: &str, width: u32) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        );
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub(crate) fn go(&mut self, address: &str) {
        let gone = self.call("Page.navigate", json!({ "url": address }));
        assert!(gone["errorText"].is_null(), "{address}: {gone}");
    }

    /// What an expression of JavaScript is in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let value = self.evaluate(expression);
        value.unwrap_or_else(|| panic!("{expression}: another page came"))
    }

    /// The same; nothing if another page comes in that moment.
    fn evaluate(&mut self, expression: &str) -> Option<Value> {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut told = match self.ask("Runtime.evaluate", asked) {
            Ok(told) => told,
            Err(error) if error["message"] == NAVIGATED => return None,
            Err(error) => panic!("{expression}: {error}"),
        };
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told}");
        Some(told["result"]["value"].take())
    }

    /// What a reader sees of the page.
    pub(crate) fn text(&mut self) -> String {
        let text = self.value("document.body ? document.body.innerText : ''");
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) {
        let (since, is_true) = (Instant::now(), format!("!!({expression})"));
        while self.evaluate(&is_true).is_none_or(|value| value != true) {
            if since.elapsed() > PATIENCE {
                let text = self.text();
                let complaints = &self.complaints;
                panic!("never came true: {expression}\n{complaints:?}\n{text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a reader sees all of these.
    pub(crate) fn shows(&mut self, words: &[&str]) {
        for word in words {
            let word = serde_json::to_string(word).unwrap();
            self.until(&format!(
                "document.body && document.body.innerText.includes({word})"
            ));
        }
    }

    /// Types into what has the focus, and presses Enter.
    pub(crate) fn enter(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
        for kind in ["rawKeyDown", "char", "keyUp"] {
            let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13 });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    /// A picture of the whole page, for people, in the directory of cargo's for tests.
    pub(crate) fn picture(&mut self, name: &str) {
        use base64::Engine as _;
        let shot = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.call("Page.captureScreenshot", shot);
        let shot = shot["data"].as_str().unwrap();
        let shot = base64::engine::general_purpose::STANDARD
            .decode(shot)
            .unwrap();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-page");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.png")), shot).unwrap();
    }

    /// Fails if anything went wrong in the page so far.
    pub(crate) fn assert_content(&mut self) {
        // What was said before the answer to this is heard.
        self.value("0");
        assert!(self.complaints.is_empty(), "{:#?}", self.complaints);
    }

    /// What went wrong so far, which is then forgotten.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        self.value("0");
        std::mem::take(&mut self.complaints)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own processes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
