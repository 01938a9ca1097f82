// ESLint's recommended rules for our JavaScript; run from the repository's root.

import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  { files: ["demo/page/static/*.js"], languageOptions: { globals: globals.browser } },
  { files: ["demo/page/static/*-worklet.js"], languageOptions: { globals: globals.audioWorklet } },
  { files: ["**/*.mjs"], languageOptions: { globals: globals.node } },
];
