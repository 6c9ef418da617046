//! Tokens → blocks of directives: snippets and imports resolved, nothing known yet of any plugin.

use super::{
    Bad, Place,
    lex::{Token, tokens},
};
use globset::GlobBuilder;
use std::{
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Imports inside imports.
const MOST_NESTED: usize = 16;
/// Words in all: an import that doubles itself ends here.
const MOST_TOKENS: usize = 100_000;

/// `zone… { directives }`.
#[derive(Clone, Debug)]
pub(super) struct RawBlock {
    pub(super) keys: Vec<Token>,
    pub(super) directives: Vec<Directive>,
}

/// A plugin's line and what is in its braces.
#[derive(Clone, Debug)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) arguments: Vec<String>,
    pub(super) properties: Vec<Property>,
}

/// A line in a plugin's braces.
#[derive(Clone, Debug)]
pub(super) struct Property {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
}

struct Parser<'v> {
    variable: &'v dyn Fn(&str) -> Option<String>,
    snippets: HashMap<String, Vec<Token>>,
    rest: VecDeque<Token>,
    /// Imports that are open at a place are not tracked; their number is.
    imports: usize,
}

/// Blocks of a file.
///
/// # Errors
/// Where and why it is no Corefile.
pub(super) fn blocks(
    file: &Arc<str>,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<RawBlock>, Bad> {
    let mut parser = Parser {
        variable,
        snippets: HashMap::new(),
        rest: tokens(file, text, variable)?.into(),
        imports: 0,
    };
    let mut all = Vec::new();
    while let Some(token) = parser.rest.pop_front() {
        if !token.quoted && token.text == "import" {
            parser.import(&token)?;
        } else if token.text.starts_with('(') && token.text.ends_with(')') {
            parser.snippet(&token)?;
        } else {
            all.push(parser.block(token)?);
        }
    }
    Ok(all)
}

impl Parser<'_> {
    fn snippet(&mut self, name: &Token) -> Result<(), Bad> {
        let open = self.rest.pop_front().filter(Token::opens);
        if open.is_none() {
            return Err(Bad::new(&name.place, "a snippet without {", "write (name) { … }"));
        }
        let mut body = Vec::new();
        let mut depth = 1;
        while let Some(token) = self.rest.pop_front() {
            depth += usize::from(token.opens());
            depth -= usize::from(token.closes());
            if depth == 0 {
                let name = name.text[1..name.text.len() - 1].to_owned();
                self.snippets.insert(name, body);
                return Ok(());
            }
            body.push(token);
        }
        Err(Bad::new(
            &name.place,
            "the snippet's { is never closed",
            "add the closing }",
        ))
    }

    /// Puts what is imported in front of what is left.
    fn import(&mut self, import: &Token) -> Result<(), Bad> {
        let place = &import.place;
        let mut arguments = self.rest_of_line(place);
        let (Some(what), true) = (arguments.pop(), arguments.is_empty()) else {
            return Err(Bad::new(
                place,
                "import takes one argument",
                "name one file, pattern or snippet",
            ));
        };
        self.imports += 1;
        let tokens = match self.snippets.get(&what.text) {
            Some(body) => body.clone(),
            None => self.read_files(&what)?,
        };
        if self.imports > MOST_NESTED * 64 || self.rest.len() + tokens.len() > MOST_TOKENS {
            return Err(Bad::new(
                place,
                "imports do not end",
                "remove the import that imports itself",
            ));
        }
        for token in tokens.into_iter().rev() {
            self.rest.push_front(token);
        }
        Ok(())
    }

    fn read_files(&self, what: &Token) -> Result<Vec<Token>, Bad> {
        let place = &what.place;
        let directory = Path::new(&*place.file).parent().unwrap_or(Path::new(""));
        let pattern = directory.join(&what.text);
        let mut files = matching(&pattern, place)?;
        if files.is_empty() {
            // A pattern may match nothing; a file that is named must be there.
            if what.text.contains(['*', '?', '[']) {
                return Ok(Vec::new());
            }
            files.push(pattern);
        }
        let mut all = Vec::new();
        for path in files {
            let text = fs::read_to_string(&path).map_err(|error| {
                let what = format!("{} cannot be imported: {error}", path.display());
                Bad::new(place, &what, "name a snippet above this line, or a file")
            });
            let file: Arc<str> = path.display().to_string().into();
            all.extend(tokens(&file, &text?, self.variable)?);
        }
        Ok(all)
    }

    /// The words that are left in a line.
    fn rest_of_line(&mut self, place: &Place) -> Vec<Token> {
        let mut all = Vec::new();
        let of_line = |token: &Token| token.place == *place && !token.opens() && !token.closes();
        while self.rest.front().is_some_and(of_line) {
            all.extend(self.rest.pop_front());
        }
        all
    }

    fn block(&mut self, first: Token) -> Result<RawBlock, Bad> {
        let place = first.place.clone();
        let mut keys = vec![first];
        loop {
            let Some(token) = self.rest.pop_front() else {
                return Err(Bad::new(&place, "no { follows the zones", "write zone { plugins }"));
            };
            if token.opens() {
                break;
            }
            keys.push(token);
        }
        let mut directives = Vec::new();
        loop {
            let Some(token) = self.rest.pop_front() else {
                return Err(Bad::new(&place, "the block's { is never closed", "add the closing }"));
            };
            if token.closes() {
                return Ok(RawBlock { keys, directives });
            }
            if !token.quoted && token.text == "import" {
                self.import(&token)?;
                continue;
            }
            directives.push(self.directive(token)?);
        }
    }

    fn directive(&mut self, name: Token) -> Result<Directive, Bad> {
        let place = name.place;
        let mut arguments = Vec::new();
        let mut properties: Vec<Property> = Vec::new();
        let same_line = |token: &Token, place: &Place| token.place == *place;
        while self
            .rest
            .front()
            .is_some_and(|token| same_line(token, &place) && !token.closes())
        {
            let Some(token) = self.rest.pop_front() else { break };
            if !token.opens() {
                arguments.push(token.text);
                continue;
            }
            loop {
                let Some(token) = self.rest.pop_front() else {
                    return Err(Bad::new(&place, "the plugin's { is never closed", "add the closing }"));
                };
                if token.closes() {
                    break;
                }
                if token.opens() {
                    return Err(Bad::new(
                        &token.place,
                        "braces inside a plugin's braces",
                        "no plugin that is known takes them",
                    ));
                }
                if !token.quoted && token.text == "import" && properties.last().is_none_or(|it| it.place != token.place)
                {
                    self.import(&token)?;
                    continue;
                }
                match properties.last_mut().filter(|last| last.place == token.place) {
                    Some(last) => last.words.push(token.text),
                    None => properties.push(Property {
                        place: token.place,
                        words: vec![token.text],
                    }),
                }
            }
            break;
        }
        Ok(Directive {
            name: name.text,
            place,
            arguments,
            properties,
        })
    }
}

/// Files that match a pattern in its last part, sorted.
fn matching(pattern: &Path, place: &Place) -> Result<Vec<PathBuf>, Bad> {
    let name = pattern
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if !name.contains(['*', '?', '[']) {
        return Ok(Vec::new());
    }
    let glob = GlobBuilder::new(&name).literal_separator(true).build();
    let glob = glob
        .map_err(|error| Bad::new(place, &error.to_string(), "write it as in conf.d/*.conf"))?
        .compile_matcher();
    let directory = pattern.parent().unwrap_or(Path::new("."));
    let entries = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let matches = |path: &PathBuf| path.file_name().is_some_and(|name| glob.is_match(name)) && path.is_file();
    let mut files: Vec<PathBuf> = entries.filter(matches).collect();
    files.sort_unstable();
    Ok(files)
}
