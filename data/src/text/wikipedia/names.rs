//! The tables: see the module above.

use super::LanguageNames;

/// The 20 languages, by code.
pub(super) const LANGUAGES: &[LanguageNames] = &[
    LanguageNames {
        code: "bg",
        file: "файл|картинка",
        category: "категория",
        redirect: "#пренасочване|#виж",
        tail: "бележки|бележки и източници|бележки под линия|библиография|вижте също|\
               външни препратки|външни връзки|допълнителна литература|източници|\
               източници и бележки|литература|препратки|цитирани източници",
        disambiguation: "пояснение|пояснителна страница",
    },
    LanguageNames {
        code: "ca",
        file: "fitxer|imatge",
        category: "categoria",
        redirect: "#redirecció",
        tail: "bibliografia|bibliografia addicional|enllaços externs|fonts|\
               lectures addicionals|notes|notes i referències|per a saber-ne més|\
               per saber-ne més|referències|vegeu també",
        disambiguation: "desambiguació|desambigua|biografies",
    },
    LanguageNames {
        code: "cs",
        file: "soubor",
        category: "kategorie",
        redirect: "#přesměruj",
        tail: "bibliografie|další literatura|externí odkazy|literatura|odkazy|poznámky|\
               poznámky a reference|reference|související články|zdroje",
        disambiguation: "rozcestník|rozcestník - příjmení|rozcestník - 2 znaky",
    },
    LanguageNames {
        code: "da",
        file: "fil|billede",
        category: "kategori",
        redirect: "#omdirigering",
        tail: "bibliografi|eksterne henvisninger|eksterne links|fodnoter|henvisninger|kilder|\
               kilder og henvisninger|kilder/henvisninger|litteratur|noter|noter og referencer|\
               referencer|se også|yderligere læsning",
        disambiguation: "flertydig",
    },
    LanguageNames {
        code: "de",
        file: "datei|bild",
        category: "kategorie",
        redirect: "#weiterleitung",
        tail: "anmerkungen|anmerkungen und einzelnachweise|belege|bibliografie|bibliographie|\
               einzelnachweise|einzelnachweise und anmerkungen|fußnoten|literatur|nachweise|\
               quellen|quellen und literatur|siehe auch|weblinks|weiterführende literatur",
        disambiguation: "begriffsklärung|falschschreibung",
    },
    LanguageNames {
        code: "en",
        file: "file|image",
        category: "category",
        redirect: "#redirect",
        tail: "bibliography|citations|cited sources|citations and notes|explanatory notes|\
               external link|external links|footnotes|further reading|\
               general and cited references|general references|notes|notes and citations|\
               notes and references|references|references and notes|see also|sources|\
               works cited",
        disambiguation: "disambiguation|disambig|dab|disamb|geodis|hndis|numberdis|\
               human name disambiguation|place name disambiguation",
    },
    LanguageNames {
        code: "es",
        file: "archivo|imagen",
        category: "categoría",
        redirect: "#redirección|#redireccion",
        tail: "bibliografía|bibliografía adicional|enlaces externos|fuentes|lectura adicional|\
               lecturas adicionales|notas|notas y referencias|referencias|referencias y notas|\
               véase también",
        disambiguation: "desambiguación|desambig|des",
    },
    LanguageNames {
        code: "fr",
        file: "fichier",
        category: "catégorie",
        redirect: "#redirection",
        tail: "annexes|article connexe|articles connexes|bibliographie|lien externe|\
               liens externes|liens et documents externes|notes|notes et références|\
               notes et sources|notes, sources et références|références|références et notes|\
               sources|sources et références|voir aussi",
        disambiguation: "homonymie|paronymie|patronyme|toponymie",
    },
    LanguageNames {
        code: "hr",
        file: "datoteka|slika",
        category: "kategorija",
        redirect: "#preusmjeri",
        tail: "bibliografija|bilješke|bilješke i izvori|izvori|literatura|napomene|povezani članci|poveznice|\
               vanjske poveznice|vidi još|vidi također",
        disambiguation: "razdvojba|razdvojba1",
    },
    LanguageNames {
        code: "hu",
        file: "fájl|kép",
        category: "kategória",
        redirect: "#átirányítás",
        tail: "ajánlott irodalom|bibliográfia|felhasznált irodalom|források|hivatkozások|\
               irodalom|jegyzetek|kapcsolódó szócikkek|külső hivatkozások|lábjegyzetek|\
               lásd még|megjegyzések|további információk",
        disambiguation: "egyért|egyértelmű|egyértelműsítő lap",
    },
    LanguageNames {
        code: "it",
        file: "immagine",
        category: "categoria",
        redirect: "#rinvia|#rinvio|#rimando",
        tail: "altri progetti|bibliografia|collegamenti esterni|fonti|note|note e riferimenti|\
               riferimenti|voci correlate",
        disambiguation: "disambigua",
    },
    LanguageNames {
        code: "nl",
        file: "bestand|afbeelding",
        category: "categorie",
        redirect: "#doorverwijzing",
        tail: "bibliografie|bronnen|bronnen, noten en/of referenties|bronvermelding|\
               externe link|externe links|literatuur|noten|noten en referenties|referenties|\
               voetnoten|zie ook",
        disambiguation: "dp|dpintro|doorverwijspagina",
    },
    LanguageNames {
        code: "pl",
        file: "plik|grafika",
        category: "kategoria",
        redirect: "#patrz|#przekieruj|#tam",
        tail: "bibliografia|linki zewnętrzne|literatura|przypisy|uwagi|zobacz też|źródła",
        disambiguation: "ujednoznacznienie|disambig",
    },
    LanguageNames {
        code: "pt",
        file: "ficheiro|arquivo|imagem",
        category: "categoria",
        redirect: "#redirecionamento|#redirecionar",
        tail: "bibliografia|fontes|leitura adicional|leituras adicionais|ligações externas|\
               links externos|notas|notas e referências|referências|referências e notas|\
               veja também|ver também",
        disambiguation: "desambiguação|desambig|disambig",
    },
    LanguageNames {
        code: "ro",
        file: "fișier|fişier|imagine",
        category: "categorie",
        redirect: "#redirecteaza|#redirectează",
        tail: "bibliografie|lectură suplimentară|legături externe|note|note de subsol|\
               note și referințe|note şi referinţe|referințe|referinţe|surse|vezi și|vezi şi",
        disambiguation: "dezambiguizare|dez",
    },
    LanguageNames {
        code: "ru",
        file: "файл|изображение",
        category: "категория",
        redirect: "#перенаправление|#перенапр",
        tail: "библиография|источники|комментарии|литература|примечания|см. также|\
               смотрите также|сноски|ссылки|внешние ссылки",
        disambiguation: "неоднозначность|многозначность|disambig",
    },
    LanguageNames {
        code: "sl",
        file: "slika|datoteka",
        category: "kategorija",
        redirect: "#preusmeritev",
        tail: "bibliografija|glej tudi|literatura|nadaljnje branje|opombe|opombe in sklici|\
               reference|sklici|sklici in opombe|viri|viri in opombe|zunanje povezave",
        disambiguation: "razločitev",
    },
    LanguageNames {
        code: "sr",
        file: "датотека|слика|datoteka|slika",
        category: "категорија|kategorija",
        redirect: "#преусмери|#преусмјери|#preusmeri|#preusmjeri",
        tail: "белешке|види још|извори|литература|напомене|референце|спољашње везе|beleške|\
               vidi još|izvori|literatura|napomene|reference|spoljašnje veze",
        disambiguation: "вишезначна одредница|вишезначност|višeznačna odrednica",
    },
    LanguageNames {
        code: "sv",
        file: "fil|bild",
        category: "kategori",
        redirect: "#omdirigering",
        tail: "anmärkningar|externa länkar|fotnoter|källförteckning|källor|litteratur|noter|\
               noter och referenser|referenser|se även|tryckta källor|vidare läsning",
        disambiguation: "förgrening|gren|grensida",
    },
    LanguageNames {
        code: "uk",
        file: "файл|зображення",
        category: "категорія",
        redirect: "#перенаправлення|#перенапр",
        tail: "бібліографія|виноски|джерела|див. також|зноски|література|посилання|примітки",
        disambiguation: "неоднозначність|багатозначність|disambig",
    },
];

/// Prefixes of links to the same page in another language: the codes of the Wikipedias.
pub(super) const INTERLANGUAGE: &str = "\
    aa ab ace ady af ak als am an ang ar arc ary arz as ast av awa ay az azb ba ban bar bat-smg \
    bcl be be-tarask be-x-old bg bh bi bjn bm bn bo bpy br bs bug bxr ca cbk-zam cdo ce ceb ch \
    cho chr chy ckb co cr crh cs csb cu cv cy da de din diq dsb dty dv dz ee el eml en eo es et \
    eu ext fa ff fi fiu-vro fj fo fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got gu gv \
    ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia id ie ig ii ik ilo inh io is it iu ja jam \
    jbo jv ka kaa kab kbd kbp kg ki kj kk kl km kn ko koi kr krc ks ksh ku kv kw ky la lad lb lbe \
    lez lfn lg li lij lld lmo ln lo lrc lt ltg lv mai map-bms mdf mg mh mhr mi min mk ml mn mo mr \
    mrj ms mt mus mwl my myv mzn na nah nan nap nds nds-nl ne new ng nl nn no nov nqo nrm nso nv \
    ny oc olo om or os pa pag pam pap pcd pdc pfl pi pih pl pms pnb pnt ps pt qu rm rmy rn ro \
    roa-rup roa-tara ru rue rw sa sah sat sc scn sco sd se sg sh shn si simple sk sl sm sn so sq \
    sr srn ss st stq su sv sw szl ta tcy te tet tg th ti tk tl tn to tpi tr ts tt tum tw ty tyv \
    udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh xmf yi yo yue za zea zh \
    zh-classical zh-min-nan zh-yue zu";
