//! Hash tags that divide the slots of a Redis Cluster evenly among partitions.
//!
//! Numbers as tags would leave some masters without a partition. The tag of partition `p` of `n` has the
//! slot in the middle of the `p`th of `n` equal ranges. All nodes must use the same texts.

/// Tags for a number of partitions; none for a number that has no table.
pub(super) fn balanced(partitions: u16) -> Option<Vec<&'static str>> {
    let table = match partitions {
        16 => TAGS_16,
        32 => TAGS_32,
        64 => TAGS_64,
        128 => TAGS_128,
        256 => TAGS_256,
        _ => return None,
    };
    Some(table.split_ascii_whitespace().collect())
}

const TAGS_16: &str = "\
    ms3 mws pt6 arf mb1 eoi pe4 acd gxm ou5 c0h ky8 gio qn ceb rc2 \
";

const TAGS_32: &str = "\
    nbd ope 3el g95 bgq cup bc1 cq0 nsf 06 3tn 4v bvs cdr br3 6jb 1cj 0qk dmz mvc 5og aw6 hho \
    asv dx8 ej9 d8p eny abll af4 hym abt \
";

const TAGS_64: &str = "\
    ht4 jwb if5 kec hpt 7pj akm zc3 lx9 frw mj8 oin dua fv7 mnx xw he6 box iw7 c9q hav bk8 azo \
    cy9 ub3 fcu tp2 m5 ddc fg5 evb iu jvr yw4 cmk xe5 jr2 hqd aaqr ice fsg dp1 gaf eb0 wu7 dtq \
    yg efp bnh yf6 c8a xt7 jc0 qkn kq1 irg fbe da3 gpd es2 wd5 des he ewr \
";

const TAGS_128: &str = "\
    qfs dqe bg5 fr3 avb ecd cu4 2jb qb3 l85 bcu fvs pp2 te4 cqt x3 dhn htp fk8 7tn ezo aoi ex \
    zg7 le6 hp0 fox jsf mw7 ib1 a8 kag h8q ubw bv7 fc1 inx erf cd6 mq hx9 uf7 brw fgq ij8 tt6 \
    kin i1 dyl her 3pj 7el ekm iws tz c95 lt4 ha2 nwb jbd mf5 is3 42 kpe sd5 wq3 hlk dpu k94 \
    9k awr ebt bbe fwc 5kc dt5 cpd geb as2 ef4 nc0 jv6 ukn h1h dh kd7 mrg any fnh jrv 1gn ys0 \
    g8a cio 0uo aj9 su7 nk9 h9a daw rg6 la afp esv bsg ffa 5za de7 caf g0h ab0 ew6 nr2 jg4 lqd \
    hdb uj ku5 mce ivc nvr bjl d84 yb2 gmk cxm 0dm xp3 \
";

const TAGS_256: &str = "\
    e8a iy8 aio tg6 2uo csv cj9 z1 dnh hk9 hrv uu7 3gn baw bx8 ftq mq1 a0h id7 eaf org cw6 cny \
    gb0 lc0 hoy hv6 dsg wkn be7 b8p fp1 apd mu5 eeb acqr cs2 ovc zu kce yim lg4 dwc hr2 ba3 \
    fmz ft5 jqd i94 exm tc2 amk cwr gz gbt ze5 qd5 djl uq3 hvr bes 3cj fpu b84 emk pc2 axm m94 \
    6t cbt zp3 k3 lvr qq3 hct ud5 f84 bpu 7cj fes 8jc aeb iu5 epd 24 cf4 kvc os lr2 qus hg4 \
    dbe nqd bt5 bmz fa3 aaf md7 e0h iq1 cb0 r8 kw krg qqw lv6 dfa hc0 bp1 f8p fe7 skn pg6 eio \
    my8 a8a cfp vx o7 zt7 qu7 lrv lk9 hgp btq fx8 faw 7gn bn crf kb1 onx e9q aq0 iag ed6 ne6 \
    sbw jp0 fua dox yh9 hsf dv7 gzo rt6 coi oj8 ey9 aup xg7 min fhn sf7 jtp nx9 dk8 hni yu6 \
    drw rp2 ows ve4 ckm aqt e95 edr xc3 sb3 flj n85 byl hjm 1el dvs yq2 cvb fj gcd kf5 au4 mpe \
    0jb iec bdc na2 fqe jt4 5me lbd dr3 hwb sl ccd ks3 gvb mec 4jb ipe eu4 nt4 bqe ja2 fdc lwb \
    5xc hbd dg5 gkm re4 kws nc 0bk adr a95 eqt fyl j85 blj wb3 1pj qtc yd4 dcu kj8 goi jg czo \
    iin 0fo eup ay9 jx9 ntp wf7 bhn qpg 1tn dgq 5ah knx wh grf kw7 ad6 mag eq0 a9q bua np0 wbw \
    je6 y97 lsf dc1 qmh \
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::hash::{SLOTS, slot};
    use super::*;

    #[test]
    fn tags_are_those_of_the_vectors_and_balanced() {
        let tables = include_str!("../../tests/vectors/redis/partition-tags.json");
        let tables: BTreeMap<u16, Vec<String>> = serde_json::from_str(tables).unwrap();
        assert_eq!(tables.len(), 5);
        for (partitions, tags) in tables {
            assert_eq!(balanced(partitions).unwrap(), tags);
            let width = SLOTS / partitions;
            for (at, tag) in tags.iter().enumerate() {
                assert_eq!(slot(tag.as_bytes()), at as u16 * width + width / 2, "{tag}");
            }
        }
        assert_eq!(balanced(17), None);
    }
}
