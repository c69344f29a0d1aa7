//! Finds the folders from which a command runs: its package and its interpreter.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

/// Interpreters that a script may go through: a shell wrapper, `env`, the interpreter.
const MAX_INTERPRETERS: usize = 4;
/// Bytes of a program that are read for its interpreter; the kernel reads as many.
const SHEBANG_BYTES: usize = 256;
/// Levels above a script in which `package.json` is looked for.
const PACKAGE_LEVELS: usize = 4;

/// Looks up commands in one environment.
pub(super) struct Packages<'a> {
    /// The variable `PATH`.
    pub path_variable: &'a str,
    /// True for folders that hold more than programs: they are never returned.
    pub is_broad: &'a dyn Fn(&Path) -> bool,
}

impl Packages<'_> {
    /// The folders of `words`, a program and its arguments: of the program, and of each argument that is the absolute
    /// path of a file, such as the script that an interpreter runs. A file in a broad folder is returned alone. Paths are
    /// without links. Blocks.
    pub(super) fn of_command(&self, words: &[String]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let path = if index == 0 { self.find(word) } else { Some(PathBuf::from(word)) };
            if let Some(path) = path.filter(|path| path.is_absolute()) {
                self.add(&path, MAX_INTERPRETERS, &mut found);
            }
        }
        found
    }

    /// The folders of the absolute entries of `PATH`.
    pub(super) fn of_path_variable(&self) -> Vec<PathBuf> {
        let entries = self.path_variable.split(':').map(Path::new).filter(|entry| entry.is_absolute());
        let folders = entries.filter_map(|entry| entry.canonicalize().ok()).filter(|entry| entry.is_dir());
        folders.flat_map(|folder| self.prefix(&folder).or_else(|| self.narrow(&folder))).collect()
    }

    /// True if a program of this name is in `PATH`.
    pub(super) fn has(&self, program: &str) -> bool {
        self.find(program).is_some()
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        if program.contains('/') {
            return Some(PathBuf::from(program));
        }
        let runs =
            |path: &PathBuf| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
        self.path_variable.split(':').map(|entry| Path::new(entry).join(program)).find(runs)
    }

    fn add(&self, path: &Path, interpreters: usize, found: &mut Vec<PathBuf>) {
        if !path.is_file() {
            return;
        }
        // Both the place of a link (a Python environment) and its target (the program) are needed.
        let place = path.parent().and_then(|parent| parent.canonicalize().ok());
        let place = place.and_then(|parent| Some(parent.join(path.file_name()?)));
        let Ok(target) = path.canonicalize() else { return };
        found.extend(place.filter(|place| *place != target).and_then(|place| self.folder_of(&place)));
        found.push(self.folder_of(&target).unwrap_or_else(|| target.clone()));
        if let Some(interpreter) = interpreters.checked_sub(1).and_then(|_| self.interpreter(&target)) {
            self.add(&interpreter, interpreters - 1, found);
        }
    }

    /// The folder of a file: the outermost `node_modules`, the nearest folder with a `package.json`, the parent of
    /// `bin`, or the file's own. `None` if that is broad.
    fn folder_of(&self, file: &Path) -> Option<PathBuf> {
        let mut modules = PathBuf::new();
        for part in file.components() {
            modules.push(part);
            if part == Component::Normal("node_modules".as_ref()) {
                return Some(modules);
            }
        }
        let folder = file.parent()?;
        let above = folder.ancestors().take(PACKAGE_LEVELS).take_while(|folder| !(self.is_broad)(folder));
        let mut packages = above.filter(|folder| folder.join("package.json").is_file());
        packages.next().map(Path::to_owned).or_else(|| self.prefix(folder)).or_else(|| self.narrow(folder))
    }

    /// The folder above `bin`, which has the libraries of an installation.
    fn prefix(&self, folder: &Path) -> Option<PathBuf> {
        let is_bin = folder.file_name().is_some_and(|name| name == "bin" || name == "shims");
        folder.parent().filter(|_| is_bin).and_then(|prefix| self.narrow(prefix))
    }

    fn narrow(&self, folder: &Path) -> Option<PathBuf> {
        (!(self.is_broad)(folder)).then(|| folder.to_owned())
    }

    /// The interpreter that the first line of a script names.
    fn interpreter(&self, script: &Path) -> Option<PathBuf> {
        let mut start = Vec::with_capacity(SHEBANG_BYTES);
        File::open(script).ok()?.take(SHEBANG_BYTES as u64).read_to_end(&mut start).ok()?;
        let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if first.rsplit('/').next() != Some("env") {
            return Some(PathBuf::from(first));
        }
        let program = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
        self.find(program)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn package_and_interpreter_of_a_script_are_found_through_links() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let home = base.join("home");
        file(&home.join(".nvm/v20/bin/node"), "binary");
        file(&home.join("app/node_modules/@x/agent/dist/index.js"), "#!/usr/bin/env -S node --quiet\n");
        file(&home.join("python/bin/python3.12"), "binary");
        fs::create_dir_all(home.join("venvs/vibe/bin")).unwrap();
        symlink(home.join("python/bin/python3.12"), home.join("venvs/vibe/bin/python")).unwrap();
        let shebang = format!("#!{}\n", home.join("venvs/vibe/bin/python").display());
        file(&home.join("venvs/vibe/bin/vibe"), &shebang);
        fs::create_dir_all(home.join(".local/bin")).unwrap();
        symlink(home.join("venvs/vibe/bin/vibe"), home.join(".local/bin/vibe")).unwrap();
        file(&home.join("agent.sh"), "#!/bin/sh\n");
        file(&home.join("tool/dist/main.js"), "x");
        file(&home.join("tool/package.json"), "{}");
        let path_variable = format!("{0}/.nvm/v20/bin:{0}/.local/bin:relative", home.display());
        let is_broad = |folder: &Path| base.starts_with(folder) || folder == home || folder == home.join(".local");
        let packages = Packages { path_variable: &path_variable, is_broad: &is_broad };
        let of = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            let found = packages.of_command(&words);
            found
                .iter()
                .filter_map(|path| path.strip_prefix(&home).ok())
                .map(|it| it.display().to_string())
                .collect::<Vec<_>>()
        };
        let script = home.join("app/node_modules/@x/agent/dist/index.js").display().to_string();
        assert_eq!(of(&[&script]), ["app/node_modules", ".nvm/v20"]);
        assert_eq!(of(&["node", &script]), [".nvm/v20", "app/node_modules", ".nvm/v20"]);
        assert_eq!(of(&["vibe"]), [".local/bin", "venvs/vibe", "venvs/vibe", "python"]);
        assert_eq!(of(&[&home.join("agent.sh").display().to_string()]), ["agent.sh"], "HOME is not a package");
        assert_eq!(of(&[&home.join("tool/dist/main.js").display().to_string()]), ["tool"]);
        assert_eq!(of(&["missing", "/nonexistent", "--flag"]), Vec::<String>::new());
        let on_path: Vec<_> =
            packages.of_path_variable().iter().map(|it| it.strip_prefix(&home).unwrap().to_owned()).collect();
        assert_eq!(on_path, [Path::new(".nvm/v20"), Path::new(".local/bin")]);
        assert!(packages.has("node") && !packages.has("npm"));
    }
}
