//! The demo agent as a headless command: a script on stdin, plain text on stdout.

use std::{
    fs,
    io::{self, Read, Write},
    process::ExitCode,
    time::Duration,
};

use super::script::{Command, commands};
use crate::{
    config::environment::{Environment, current_folder},
    domain::turn::prompt::REQUEST_HEADING,
};

/// Runs the script on stdin. Returns exit code 1 if the script crashes or an input or output operation fails, else 0.
pub(super) fn run() -> ExitCode {
    let mut text = String::new();
    let finished = io::stdin().read_to_string(&mut text).and_then(|_| play(&text));
    match finished {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Runs a script. Returns false if it crashes.
fn play(text: &str) -> io::Result<bool> {
    let (ahead, script) = match text.rsplit_once(REQUEST_HEADING) {
        Some((ahead, script)) => (Some(ahead.trim()), script.trim()),
        None => (None, text.trim()),
    };
    for command in commands(script) {
        if !perform(&command, ahead)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn perform(command: &Command, ahead: Option<&str>) -> io::Result<bool> {
    let pause = |seconds: f64| std::thread::park_timeout(Duration::from_secs_f64(seconds));
    match command.word.as_str() {
        "echo" => say(&command.rest)?,
        "write" => {
            let (name, text) = command.name_and_text();
            fs::write(name, text)?;
            say(&format!("wrote {name}"))?;
        }
        "read" => say(&fs::read_to_string(&command.rest)?)?,
        "sleep" => pause(command.rest.parse().unwrap_or(1.0)),
        "ticks" => {
            for n in 1..=command.number(0, 5) {
                say(&format!("tick {n} "))?;
                pause(command.number(1, 100) as f64 / 1000.0);
            }
        }
        "flood" => (0..command.number(0, 1000)).try_for_each(|n| say(&format!("{n} ")))?,
        "huge" => say(&"x".repeat(usize::try_from(command.number(0, 1_000_000)).unwrap_or_default()))?,
        "context" => {
            let blocks = usize::from(ahead.is_some());
            say(&format!("{blocks} blocks ahead: {}", ahead.unwrap_or_default()))?;
        }
        "count" => say("1")?,
        "env" => say(Environment::of_process().get(&command.rest).unwrap_or("unset"))?,
        "cwd" => say(&current_folder()?.display().to_string())?,
        "pid" => say(&std::process::id().to_string())?,
        "hang" => hang(),
        "ignore-cancel" => {
            // SAFETY: ignoring a signal installs no handler.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            hang();
        }
        "crash" => {
            say("about to crash")?;
            eprintln!("demo-agent: crashes, as requested");
            return Ok(false);
        }
        _ => say(&command.whole())?,
    }
    Ok(true)
}

/// Stays silent until the process is killed.
fn hang() -> ! {
    loop {
        std::thread::park_timeout(Duration::from_secs(3600));
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
