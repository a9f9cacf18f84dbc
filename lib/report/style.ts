/** The style sheet of report.html. Colours are variables, so that light and dark differ in one place. */

export const STYLE = `
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1b1f24;--soft:#59626d;--line:#dfe3e8;
--accent:#2c6fc9;--second:#c25a12;--good:#1d7a45;--warn:#9a5b00;--warn-back:#fff5e0;
--shallow:#18a08f;--deep:#6a2fa8;--cool:#e6eef9;--hot:#0d2f6e;--oncool:#1b1f24;--onhot:#fff}
@media (prefers-color-scheme:dark){:root{--page:#101317;--card:#191d22;--ink:#e8ebef;--soft:#9aa5b1;
--line:#2d343c;--accent:#69a7f5;--second:#f09a55;--good:#5cc48b;--warn:#f0b95a;--warn-back:#2d2413;
--shallow:#3fcdb9;--deep:#bb92ff;--cool:#1c2938;--hot:#bfe2ff;--oncool:#e8ebef;--onhot:#101317}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1160px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:36px 0 12px}
h3{font-size:1rem;margin:0}
p{margin:0}
.soft,figcaption p{color:var(--soft);font-size:.9rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0 0}
.tile,figure,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:12px 14px}
.tile b{display:block;font-size:1.35rem;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem;display:block}
.alert{background:var(--warn-back);border:1px solid var(--warn);border-radius:10px;padding:12px 16px;margin:16px 0 0}
.alert b{color:var(--warn)}
.alert ul,.notes{margin:4px 0 0;padding-left:20px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
figure{margin:0;padding:14px 16px 12px;min-width:0}
figcaption{margin-bottom:8px}
.plot{display:block;width:100%;height:auto;overflow:visible}
.plot text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums;fill:var(--soft)}
.plot .name{fill:var(--ink)}
.plot .oncool{fill:var(--oncool)}
.plot .onhot{fill:var(--onhot)}
.untouched{fill:none;stroke:var(--line);stroke-width:1}
.grid{stroke:var(--line);stroke-width:1}
.divider{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.limit{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:6 4}
.series path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.series circle{stroke:none}
.bar{fill:var(--accent)}
circle.exact{fill:var(--accent)}
circle.stored{fill:var(--card);stroke:var(--second);stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:center;color:var(--soft);font-size:.85rem;margin-top:8px}
.swatch{display:inline-flex;align-items:center;gap:6px;white-space:nowrap}
.swatch i{width:11px;height:11px;border-radius:50%;display:inline-block;flex:none}
i.exact{background:var(--accent)}
i.stored{border:2px solid var(--second)}
.ramp{width:110px;height:9px;border-radius:5px;background:linear-gradient(in oklab 90deg,var(--shallow),var(--deep))}
.heat{background:linear-gradient(in oklab 90deg,var(--cool),var(--hot))}
.card{padding:4px 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 16px;white-space:nowrap}
th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left}
tbody tr,tfoot tr{border-top:1px solid var(--line)}
tfoot td{font-weight:650}
.facts{columns:3 260px;column-gap:32px;padding:12px 16px}
.facts div{display:flex;justify-content:space-between;gap:16px;break-inside:avoid;padding:3px 0;border-bottom:1px solid var(--line);font-size:.9rem}
.facts dt{color:var(--soft)}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere}
dl{margin:0}
.hint{margin:16px 0 12px}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--ink);overflow-wrap:anywhere}
pre{margin:0;padding:12px 16px;white-space:pre-wrap;overflow-wrap:anywhere;font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.warn{color:var(--warn)}
@media (max-width:640px){main{padding:20px 12px 36px}.tiles{grid-template-columns:1fr 1fr;gap:8px}
figure{padding:12px}.plot text{font-size:14.5px}h1{font-size:1.4rem}th,td{padding:6px 12px}
td:first-child{white-space:normal}}
@media print{:root{color-scheme:light}figure,.tile,.card{break-inside:avoid}}
`;
