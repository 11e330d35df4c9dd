//! The configuration of the data steps, as a file.

use altiplano_data::classifier::TrainClassifierOptions;
use altiplano_data::language::TrainLanguageOptions;
use altiplano_data::{DataConfig, DataError, MixtureConfig};

use super::load::{ConfigFile, Problem};

impl ConfigFile for DataConfig {
    const PATHS: &'static [&'static str] = &[
        "output",
        "work",
        "tokenizer.model",
        "sources.*.*.list",
        "sources.*.*.root",
        "sources.*.steps.*.*.model",
        "sources.*.steps.*.*.tokenizer",
        "sources.*.steps.*.*.files.*",
        "sources.*.steps.*.*.bad_words",
    ];
    const ADDRESSES: &'static [&'static str] = Self::PATHS;
    const PATTERNS: &'static [&'static str] = &["sources.*.*.paths.*"];

    fn check(&self) -> Result<(), Problem> {
        match self.validate() {
            Ok(()) => Ok(()),
            Err(DataError::Config { key, found, expected }) => {
                let message = format!("found {found}, expected {expected}");
                Err(Problem::new(&by_index(self, &key), message))
            }
            Err(other) => Err(Problem::new("sources", other.to_string())),
        }
    }
}

impl ConfigFile for MixtureConfig {
    const PATHS: &'static [&'static str] = &["sources.*.path"];
    const ADDRESSES: &'static [&'static str] = Self::PATHS;

    fn check(&self) -> Result<(), Problem> {
        match self.validate() {
            Ok(()) => Ok(()),
            Err(DataError::Config { key, found, expected }) => {
                let key = key.strip_prefix("data.").unwrap_or(&key);
                Err(Problem::new(key, format!("found {found}, expected {expected}")))
            }
            Err(other) => Err(Problem::new("sources", other.to_string())),
        }
    }
}

impl ConfigFile for TrainLanguageOptions {
    const PATHS: &'static [&'static str] = &["inputs.*", "output"];
}

impl ConfigFile for TrainClassifierOptions {
    const PATHS: &'static [&'static str] = &["references.*", "random.*", "output"];
}

/// `sources.books.text.paths` as `sources.1.text.paths`: the key as it stands in the file.
fn by_index(config: &DataConfig, key: &str) -> String {
    let below = key.strip_prefix("sources.").unwrap_or_default();
    let sources = config.sources.iter().enumerate();
    // A name may contain dots, so the longest one that fits is meant.
    let named = sources
        .filter_map(|(index, source)| Some((index, below.strip_prefix(source.name.as_str())?)))
        .filter(|(_, rest)| rest.is_empty() || rest.starts_with('.'))
        .min_by_key(|(_, rest)| rest.len())
        .map(|(index, rest)| format!("sources.{index}{rest}"));
    named.unwrap_or_else(|| key.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::load;

    const TEXT: &str = "\
output: ../out
sources:
  - name: speeches
    text: { paths: [\"../text/*.txt\", /abs/*.txt] }
  - name: speeches.old
    text:
      paths: []
";

    #[test]
    fn a_problem_of_a_named_source_is_found_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data.yaml");
        std::fs::write(&file, TEXT).unwrap();
        let error = load::<DataConfig>(&file, &[]).unwrap_err();
        let expected = format!("{}:7:7: sources.1.text.paths: found an empty list", file.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(error.is_usage());
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("configs")).unwrap();
        let file = dir.path().join("configs/data.yaml");
        std::fs::write(&file, TEXT.replace("paths: []", "paths: [x]")).unwrap();
        let config: DataConfig = load(&file, &["holdout.fraction=0.5".into()]).unwrap();
        assert_eq!(config.output, dir.path().join("out"));
        assert_eq!(config.tokenizer_model(), dir.path().join("out/tokenizer.model"));
        let text = config.sources[0].text.as_ref().unwrap();
        assert_eq!(text.paths, [dir.path().join("text/*.txt"), "/abs/*.txt".into()]);
    }

    #[test]
    fn the_folder_of_the_file_is_not_a_pattern() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a[1]", "{b,c}", "d*"] {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("x.txt"), "text").unwrap();
            let file = folder.join("data.yaml");
            std::fs::write(
                &file,
                "output: out\nsources: [{name: x, text: {paths: [\"*.txt\"]}}]\n",
            )
            .unwrap();
            let config: DataConfig = load(&file, &[]).unwrap();
            let paths = &config.sources[0].text.as_ref().unwrap().paths;
            let inputs = altiplano_data::source::list_inputs("paths", paths).unwrap();
            assert_eq!(inputs[0].path, folder.join("x.txt"), "{name}");
            assert_eq!(config.output, folder.join("out"));
        }
    }
}
