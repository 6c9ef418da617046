//! Declarations of types in Go sources that gofmt has formatted: as much of Go as the API's type files use.

use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Go packages by import path, read when first asked for.
pub(super) struct Packages {
    roots: Vec<PathBuf>,
    read: BTreeMap<String, Package>,
}

/// The declarations of one package.
#[derive(Clone, Debug, Default)]
pub(super) struct Package {
    /// By name.
    pub(super) types: BTreeMap<String, Declaration>,
    /// Constants with a literal value, as written, by name.
    pub(super) constants: BTreeMap<String, String>,
    /// Where its sources are.
    pub(super) dir: PathBuf,
}

/// One `type` declaration.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    /// Import paths by the name that its file gives them.
    pub(super) imports: BTreeMap<String, String>,
    /// Markers of its comment.
    pub(super) markers: Markers,
    /// What it declares.
    pub(super) form: Form,
}

/// What a declaration declares.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// `type A struct { … }`
    Struct(Vec<Member>),
    /// `type A = B`: the expression of B, of which A is another name.
    Alias(String),
    /// `type A B`: the expression of B, whose form A has.
    Derived(String),
}

/// A line of a struct.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// As written: `*[]v1.Pod`.
    pub(super) expression: String,
    /// By key: `json`, `protobuf`, `patchStrategy`.
    pub(super) tags: BTreeMap<String, String>,
    /// Markers of its comment.
    pub(super) markers: Markers,
}

/// `// +key=value` lines, values in order; the empty string where there is no `=`.
#[derive(Clone, Debug, Default)]
pub(super) struct Markers(BTreeMap<String, Vec<String>>);

impl Markers {
    /// The last value of a marker.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.all(key).last().map(String::as_str)
    }

    /// All values of a marker.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn of(comment: &[&str]) -> Self {
        let mut markers = Self::default();
        for line in comment {
            if let Some(marker) = line.strip_prefix('+') {
                let (key, value) = marker.split_once('=').unwrap_or((marker, ""));
                markers
                    .0
                    .entry(key.trim().to_owned())
                    .or_default()
                    .push(value.trim().to_owned());
            }
        }
        markers
    }
}

impl Packages {
    /// Packages below these folders.
    pub(super) fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            read: BTreeMap::new(),
        }
    }

    /// The package of an import path.
    ///
    /// # Errors
    /// It is not there, or not readable.
    pub(super) fn get(&mut self, path: &str) -> Result<&Package> {
        if !self.read.contains_key(path) {
            let dir = self.roots.iter().map(|root| root.join(path)).find(|dir| dir.is_dir());
            let dir = dir.with_context(|| format!("no package has the Go import path {path}"))?;
            self.read.insert(path.to_owned(), Package::read(dir)?);
        }
        self.read.get(path).context("just inserted")
    }

    /// Whether there is such a package.
    pub(super) fn has(&self, path: &str) -> bool {
        self.roots.iter().any(|root| root.join(path).is_dir())
    }
}

impl Package {
    fn read(dir: PathBuf) -> Result<Self> {
        let mut package = Self { dir, ..Self::default() };
        let dir = &package.dir;
        let mut files: Vec<PathBuf> = fs::read_dir(dir)
            .with_context(|| dir.display().to_string())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.sort();
        for file in files.iter().filter(|path| is_source(path)) {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            parse(&text, &mut package).with_context(|| file.display().to_string())?;
        }
        Ok(package)
    }
}

fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".go") && !name.ends_with("_test.go") && !name.contains("generated")
}

fn parse(text: &str, package: &mut Package) -> Result<()> {
    let mut imports = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("/*") {
            skip_block(line, &mut lines);
            continue;
        }
        if let Some(text) = line.strip_prefix("//") {
            comment.push(text.trim());
            continue;
        }
        if line == "import (" {
            lines
                .by_ref()
                .take_while(|line| *line != ")")
                .for_each(|line| import(line, &mut imports));
        } else if let Some(line) = line.strip_prefix("import ") {
            import(line, &mut imports);
        } else if let Some((name, rest)) = line.strip_prefix("type ").and_then(|rest| rest.split_once(' ')) {
            let rest = rest.split(" //").next().unwrap_or_default().trim();
            let form = if rest == "struct {" {
                Form::Struct(members(&mut lines).with_context(|| name.to_owned())?)
            } else if let Some(expression) = rest.strip_prefix("= ") {
                Form::Alias(expression.to_owned())
            } else if rest == "struct{}" {
                Form::Struct(Vec::new())
            } else {
                Form::Derived(rest.to_owned())
            };
            let declaration = Declaration {
                imports: imports.clone(),
                markers: Markers::of(&comment),
                form,
            };
            package.types.insert(name.to_owned(), declaration);
        }
        if let Some((name, value)) = constant(line) {
            package.constants.insert(name.to_owned(), value.to_owned());
        }
        // A blank line too: a comment that does not touch the declaration is not its own.
        comment.clear();
    }
    Ok(())
}

/// `Name Type = literal`, in a block of constants or behind `const`.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (declared, value) = line.trim().trim_start_matches("const ").split_once(" = ")?;
    let is_literal = value.starts_with(['"', '-']) || value.starts_with(|first: char| first.is_ascii_digit());
    is_literal.then_some((declared.split_whitespace().next()?, value))
}

fn skip_block<'a>(first: &'a str, lines: &mut impl Iterator<Item = &'a str>) {
    if !first.contains("*/") {
        lines.take_while(|line| !line.contains("*/")).for_each(drop);
    }
}

fn import(line: &str, imports: &mut BTreeMap<String, String>) {
    let mut parts = line.split('"');
    let (Some(alias), Some(path)) = (parts.next(), parts.next()) else {
        return;
    };
    let alias = alias.trim();
    let name = if alias.is_empty() {
        path.rsplit('/').next().unwrap_or(path)
    } else {
        alias
    };
    imports.insert(name.to_owned(), path.to_owned());
}

fn members<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    while let Some(line) = lines.next() {
        if line == "}" {
            return Ok(members);
        }
        let line = line.trim();
        if line.starts_with("/*") {
            skip_block(line, lines);
        } else if let Some(text) = line.strip_prefix("//") {
            comment.push(text.trim());
        } else {
            if !line.is_empty() {
                members.push(member(line, &comment)?);
            }
            comment.clear();
        }
    }
    bail!("a struct does not end");
}

fn member(line: &str, comment: &[&str]) -> Result<Member> {
    let mut parts = line.split('`');
    let declared = parts.next().unwrap_or_default().trim();
    let declared = declared.split(" //").next().unwrap_or_default().trim();
    let tags = parts.next().map(tags).transpose()?.unwrap_or_default();
    // An embedded type has no name before it.
    let expression = declared
        .split_once(char::is_whitespace)
        .map_or(declared, |(_, expression)| expression.trim());
    Ok(Member {
        expression: expression.to_owned(),
        tags,
        markers: Markers::of(comment),
    })
}

/// `key:"value" key:"value"`; upstream escapes nothing in the values.
fn tags(text: &str) -> Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, value) = rest.split_once(":\"").with_context(|| format!("the tag {text}"))?;
        let (value, after) = value.split_once('"').with_context(|| format!("the tag {text}"))?;
        tags.insert(key.trim().to_owned(), value.to_owned());
        rest = after.trim();
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/*\ntype No struct {\n*/\n\npackage v1\n\nimport (\n\tmetav1 \"k8s.io/a/meta/v1\"\n\t\"k8s.io/a/types\"\n)\n\n\
        // A is one.\n// +structType=atomic\ntype A struct {\n\tmetav1.TypeMeta `json:\",inline\"`\n\n\t// Text.\n\t// +listType=map\n\
        \t// +listMapKey=a\n\t// +listMapKey=b\n\tItems []*types.B `json:\"items,omitempty\" protobuf:\"bytes,1,rep,name=items\"` // x\n}\n\n\
        type C = metav1.D\ntype E string\n\nconst (\n\tF E = \"f\"\n)\n";

    #[test]
    fn declarations_keep_imports_markers_and_tags() {
        let mut package = Package::default();
        parse(SOURCE, &mut package).unwrap();
        let types = package.types;
        assert_eq!(package.constants["F"], "\"f\"");
        assert_eq!(types.keys().collect::<Vec<_>>(), ["A", "C", "E"]);
        let a = &types["A"];
        assert_eq!(a.markers.get("structType"), Some("atomic"));
        assert_eq!(a.imports["types"], "k8s.io/a/types");
        let Form::Struct(members) = &a.form else {
            panic!("{a:?}")
        };
        assert_eq!(members[0].expression, "metav1.TypeMeta");
        assert_eq!(members[1].expression, "[]*types.B");
        assert_eq!(members[1].markers.all("listMapKey"), ["a", "b"]);
        assert_eq!(members[1].tags["json"], "items,omitempty");
        assert!(matches!(&types["C"].form, Form::Alias(expression) if expression == "metav1.D"));
    }

    #[test]
    fn a_struct_without_an_end_is_refused() {
        assert!(parse("type A struct {\n\tB string\n", &mut Package::default()).is_err());
    }
}
