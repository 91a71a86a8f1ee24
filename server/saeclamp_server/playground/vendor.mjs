/**
 * Copies the libraries of the page out of node_modules to web/vendor, where the browser loads them as they are.
 *
 *     npm ci && node vendor.mjs [--check]
 *
 * Names of packages in their imports become paths, because a browser knows no packages; nothing else is changed. versions.json
 * says which version each file is of, under which licence, and its sha256. With --check nothing is written, and what is
 * not as it would be written is an error.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const VENDOR = join(HERE, "web", "vendor");
const FILES = {
  "preact.js": { package: "preact", file: "dist/preact.mjs", name: "preact" },
  "hooks.js": { package: "preact", file: "hooks/dist/hooks.mjs", name: "preact/hooks" },
  "signals-core.js": { package: "@preact/signals-core", file: "dist/signals-core.mjs", name: "@preact/signals-core" },
  "signals.js": { package: "@preact/signals", file: "dist/signals.mjs", name: "@preact/signals" },
  "htm.js": { package: "htm", file: "dist/htm.mjs", name: "htm" },
};

function vendored() {
  const versions = {};
  const licences = {};
  const written = {};
  for (const [name, from] of Object.entries(FILES)) {
    const folder = join(HERE, "node_modules", from.package);
    const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    let text = readFileSync(join(folder, from.file), "utf8").replace(/\n?\/\/# sourceMappingURL=.*\s*$/, "\n");
    for (const [file, other] of Object.entries(FILES)) {
      text = text.replaceAll(new RegExp(`(from|import)\\s*(["'])${other.name}\\2`, "g"), `$1"./${file}"`);
    }
    const left = text.match(/(?:from|import)\s*["'](?!\.\/)[^"']+["']/);
    if (left) throw new Error(`${name} imports what is not vendored: ${left[0]}`);
    written[name] = text;
    // for tsc alone, which knows the packages and their types
    const hasDefault = /export\s*\{[^}]*\bas default\b|export default/.test(text);
    written[name.replace(".js", ".d.ts")] =
      `export * from "${from.name}";\n${hasDefault ? `export { default } from "${from.name}";\n` : ""}`;
    versions[name] = {
      package: from.package,
      version: about.version,
      license: about.license,
      file: from.file,
      sha256: createHash("sha256").update(text).digest("hex"),
    };
    licences[`${from.package} ${about.version}`] = readFileSync(join(folder, "LICENSE"), "utf8").trim();
  }
  written["versions.json"] = `${JSON.stringify(versions, null, 2)}\n`;
  written["LICENSES.txt"] = Object.entries(licences)
    .map(([what, text]) => `${what}\n\n${text}\n`)
    .join("\n\n");
  return written;
}

const files = vendored();
if (process.argv.includes("--check")) {
  const wrong = Object.entries(files).filter(([name, text]) => {
    try {
      return readFileSync(join(VENDOR, name), "utf8") !== text;
    } catch {
      return true;
    }
  });
  if (wrong.length) {
    console.error(`web/vendor: ${wrong.map(([name]) => name).join(", ")} not as vendor.mjs writes it`);
    process.exit(1);
  }
} else {
  mkdirSync(VENDOR, { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(join(VENDOR, name), text);
}
