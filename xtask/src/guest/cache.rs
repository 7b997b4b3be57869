//! The directory that is kept between runs, outside the checkout: Debian packages as they were
//! downloaded, and what was made of them, each in a directory that is named after its version.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// `$XDG_CACHE_HOME/sendfile2`.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        _ => {
            let home =
                std::env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?;
            Path::new(&home).join(".cache")
        }
    };
    let directory = cache.join("sendfile2");
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

/// Finds the newest package of those whose name begins and ends so, and unpacks it.
pub(crate) fn newest(begins: &str, ends: &str) -> anyhow::Result<Package> {
    let debs = debs()?;
    let mut names = offered(begins, ends)?;
    names.extend(kept(&debs)?.into_iter().map(|deb| deb.name));
    names.retain(|name| fits(name, begins, ends));
    names.sort_by_key(|name| Reverse(numbers(name)));
    let name = names.first().with_context(|| {
        format!(
            "no package {begins}*{ends} is known here: run `apt-get update` as root \
             (it needs Debian 12 with its security archive, or 13)"
        )
    })?;
    package(name)
}

/// Unpacks a package by its name, in the version that the archive offers.
pub(crate) fn package(name: &str) -> anyhow::Result<Package> {
    let deb = download(name)?;
    unpack(&deb)
}

/// Downloads a package by its name, and returns its file.
pub(crate) fn download(name: &str) -> anyhow::Result<PathBuf> {
    let debs = debs()?;
    let file = match file_name(name) {
        Ok(file) => file,
        // Without the archive, what is there already must do.
        Err(error) => {
            let mut kept = kept(&debs)?;
            kept.retain(|deb| deb.name == name);
            kept.sort_by_key(|deb| Reverse(numbers(&deb.version)));
            let Some(deb) = kept.into_iter().next() else { return Err(error) };
            return Ok(debs.join(deb.file));
        }
    };
    let path = debs.join(&file);
    if path.exists() {
        return Ok(path);
    }
    println!("downloading {file} into {}", debs.display());
    let new = tempfile::tempdir_in(&debs)?;
    // apt's own user could not write there.
    run(Command::new("apt-get").current_dir(new.path()).args(["download", name]), APT)?;
    let file = std::fs::read_dir(new.path())?.next().context("apt-get downloaded nothing")??;
    // Where the archive was updated meanwhile, this is another version.
    let path = debs.join(file.file_name());
    std::fs::rename(file.path(), &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Unpacks packages that belong together into one directory of this name; `mend` gets the directory
/// that they are in, and the one that they will be in.
pub(crate) fn together(
    name: &str,
    packages: &[String],
    mend: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let debs: Vec<_> = packages.iter().map(|name| download(name)).collect::<Result<_, _>>()?;
    let version = debs.iter().find_map(|deb| Deb::parse(deb.file_name()?.to_str()?));
    let version = version.context("a package without a version")?.version;
    let root = directory()?.join(format!("{name}-{version}"));
    if !root.exists() {
        make(&root, |new| {
            for deb in &debs {
                println!("unpacking {}", deb.display());
                run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(new), DPKG)?;
            }
            mend(new, &root)
        })?;
    }
    Ok(root)
}

/// A package that is unpacked.
#[derive(Debug)]
pub(crate) struct Package {
    /// The directory of its files, as if below `/`.
    pub(crate) root: PathBuf,
    /// The name of the package.
    pub(crate) name: String,
    /// The version of the package.
    pub(crate) version: String,
}

fn unpack(deb: &Path) -> anyhow::Result<Package> {
    let file = deb.file_name().and_then(|name| name.to_str()).context("a nameless package")?;
    let Deb { name, version, .. } =
        Deb::parse(file).with_context(|| format!("{file} is not named as a package"))?;
    let root = directory()?.join(format!("{name}-{version}"));
    if !root.exists() {
        println!("unpacking {file}");
        make(&root, |new| run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(new), DPKG))?;
    }
    Ok(Package { root, name, version })
}

/// Makes a directory of the cache: all of it, or nothing.
pub(crate) fn make(
    at: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let parent = at.parent().context("no directory")?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    let content = new.path().join("content");
    std::fs::create_dir(&content)?;
    fill(&content)?;
    match std::fs::rename(&content, at) {
        // Somebody else was faster.
        Err(_) if at.exists() => Ok(()),
        result => result.with_context(|| at.display().to_string()),
    }
}

fn debs() -> anyhow::Result<PathBuf> {
    let debs = directory()?.join("debs");
    std::fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
    Ok(debs)
}

/// A downloaded package, by its file's name.
#[derive(Debug, PartialEq, Eq)]
struct Deb {
    file: String,
    name: String,
    version: String,
}

impl Deb {
    fn parse(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(".deb")?.split('_');
        let (name, version) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        parts.next().filter(|_| parts.next().is_none())?;
        Some(Deb { file: file.to_owned(), name, version })
    }
}

fn kept(debs: &Path) -> anyhow::Result<Vec<Deb>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(debs)? {
        found.extend(entry?.file_name().to_str().and_then(Deb::parse));
    }
    Ok(found)
}

/// The names of the packages that the archive has.
fn offered(begins: &str, ends: &str) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["search", "--names-only"]).arg(format!("^{begins}.*{ends}$"));
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("apt-cache"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn fits(name: &str, begins: &str, ends: &str) -> bool {
    name.len() >= begins.len() + ends.len() && name.starts_with(begins) && name.ends_with(ends)
}

/// The file that `apt-get download` would write.
fn file_name(name: &str) -> anyhow::Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["download", "--print-uris", "-qq", name]).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run apt-get: {APT}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // 'URI' FILE SIZE CHECKSUM
    let file = text.lines().find_map(|line| line.split(' ').nth(1));
    // A colon of the version is written as %3a.
    file.map(str::to_owned).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("apt knows no package {name} ({}): run `apt-get update` as root", said.trim())
    })
}

/// The numbers in a name or a version, to order by.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

const APT: &str = "packages are downloaded by Debian's apt-get, which needs the network";
const DPKG: &str = "packages are unpacked by Debian's dpkg-deb";

/// Runs a command that shows what it does; `hint` is what it is needed for, for the error of a
/// failure.
pub(crate) fn run(command: &mut Command, hint: &str) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = match command.stdin(Stdio::null()).status() {
        Ok(status) => status,
        Err(error) => bail!("cannot run {name}: {error} ({hint})"),
    };
    ensure!(status.success(), "{name} failed: {status} ({hint}; is there space on the disk?)");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_packages_are_told_from_others() {
        let deb = Deb::parse("linux-image-6.12_6.12.9-1~deb12u1_amd64.deb").unwrap();
        assert_eq!((&*deb.name, &*deb.version), ("linux-image-6.12", "6.12.9-1~deb12u1"));
        for other in ["a_1_all.deb.part", "a_1.deb", "a_1_2_all.deb", ".tmp", ""] {
            assert_eq!(Deb::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_is_so_by_number() {
        assert!(numbers("linux-image-6.12.117+deb12") > numbers("linux-image-6.12.38+deb12"));
        assert!(numbers("6.12.9-1~deb12u1") < numbers("6.12.9-2~deb12u1"));
        assert!(fits("linux-image-6.12.9-cloud-amd64", "linux-image-6.12", "-cloud-amd64"));
        assert!(!fits("linux-image-6.12.9-cloud-amd64-unsigned", "linux-image-6.12", "-amd64"));
        assert!(!fits("linux-image-6.1-cloud-amd64", "linux-image-6.12", "-cloud-amd64"));
    }

    #[test]
    fn a_directory_of_the_cache_is_made_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let at = cache.path().join("name-1");
        make(&at, |new| {
            std::fs::write(new.join("half"), "half").unwrap();
            bail!("no space")
        })
        .unwrap_err();
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
        make(&at, |new| Ok(std::fs::write(new.join("whole"), "whole")?)).unwrap();
        assert!(at.join("whole").exists());
    }
}
