//! The sites of the network, and how many posts they have.

use std::path::Path;

use serde::Serialize;

/// The 28 largest sites, as far as published figures tell: by question-and-answer pairs in the
/// 2021 dump (dataset card of `flax-sentence-embeddings/stackexchange_titlebody_best_voted_answer_jsonl`),
/// and the three that card leaves out because they are apart there: Stack Overflow, Mathematics
/// and Stack Overflow in Spanish. LLaMA's own list was never published. The order near the end
/// differs between dumps: [`super::StackExchangeSource::count`] tells for yours.
pub const LARGEST_SITES: [&str; 28] = [
    "stackoverflow.com",
    "math.stackexchange.com",
    "superuser.com",
    "askubuntu.com",
    "ru.stackoverflow.com",
    "serverfault.com",
    "es.stackoverflow.com",
    "tex.stackexchange.com",
    "unix.stackexchange.com",
    "physics.stackexchange.com",
    "electronics.stackexchange.com",
    "stats.stackexchange.com",
    "pt.stackoverflow.com",
    "english.stackexchange.com",
    "gis.stackexchange.com",
    "apple.stackexchange.com",
    "salesforce.stackexchange.com",
    "mathoverflow.net",
    "wordpress.stackexchange.com",
    "gaming.stackexchange.com",
    "sharepoint.stackexchange.com",
    "magento.stackexchange.com",
    "ell.stackexchange.com",
    "dba.stackexchange.com",
    "drupal.stackexchange.com",
    "mathematica.stackexchange.com",
    "scifi.stackexchange.com",
    "blender.stackexchange.com",
];

/// The other tables of a dump.
const OTHER_TABLES: [&str; 7] =
    ["Badges", "Comments", "PostHistory", "PostLinks", "Tags", "Users", "Votes"];

/// Posts of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SitePosts {
    /// The site: `math.stackexchange.com`.
    pub site: String,
    /// Posts of type 1.
    pub questions: u64,
    /// Posts of type 2.
    pub answers: u64,
    /// Posts of other types.
    pub other: u64,
    /// Rows that could not be read.
    pub broken: u64,
}

impl SitePosts {
    /// Questions and answers: the size of a site.
    pub fn posts(&self) -> u64 {
        self.questions + self.answers
    }
}

/// The site whose posts are in the file at `path`; `None` when it holds another table.
///
/// `math.stackexchange.com.7z`, `stackoverflow.com-Posts.7z` and `math.stackexchange.com/Posts.xml`
/// (also compressed) are understood.
pub(super) fn site_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_string_lossy();
    let name = file.strip_suffix(".gz").or(file.strip_suffix(".zst")).unwrap_or(&file);
    let name = name.strip_suffix(".7z").or(name.strip_suffix(".xml")).unwrap_or(name);
    let (site, table) = match name.rsplit_once(['-', '.', '_']) {
        Some((site, table)) if table == "Posts" || OTHER_TABLES.contains(&table) => (site, table),
        _ if name == "Posts" || OTHER_TABLES.contains(&name) => ("", name),
        _ => (name, "Posts"),
    };
    if table != "Posts" {
        return None;
    }
    match site {
        "" => path.parent()?.file_name().map(|name| name.to_string_lossy().into_owned()),
        _ => Some(site.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_site_and_the_table() {
        for (path, site) in [
            ("x/ai.stackexchange.com.7z", Some("ai.stackexchange.com")),
            ("x/stackoverflow.com-Posts.7z", Some("stackoverflow.com")),
            ("x/stackoverflow.com-Users.7z", None),
            ("x/dba.stackexchange.com/Posts.xml", Some("dba.stackexchange.com")),
            ("x/dba.stackexchange.com/Posts.xml.gz", Some("dba.stackexchange.com")),
            ("x/dba.stackexchange.com/PostHistory.xml.zst", None),
            ("x/mathoverflow.net.Posts.xml", Some("mathoverflow.net")),
            ("ru.stackoverflow.com.7z", Some("ru.stackoverflow.com")),
        ] {
            assert_eq!(site_of(Path::new(path)).as_deref(), site, "{path}");
        }
    }

    #[test]
    fn the_list_has_28_different_sites() {
        let mut sites = LARGEST_SITES.to_vec();
        sites.sort_unstable();
        sites.dedup();
        assert_eq!(sites.len(), 28);
    }
}
