import { cpSync } from 'node:fs';
import { defineConfig } from 'vite';

// LiteRT picks one of these by what the browser can do, and looks for it beside the page.
for (const variant of ['litert_wasm_internal', 'litert_wasm_compat_internal']) {
  for (const ending of ['js', 'wasm']) {
    const file = `wasm/${variant}.${ending}`;
    cpSync(`node_modules/@litertjs/core/${file}`, `public/${file}`);
  }
}

export default defineConfig({ base: './' });
