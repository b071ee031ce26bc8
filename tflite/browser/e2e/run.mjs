/**
 * Uses the built page as a person would, in headless Chromium, and prints what came of it as JSON.
 *
 *     node e2e/run.mjs DIST MODEL FRAMES_FOLDER VIDEO NUMBERED_VIDEO BAD_FILES SCREENSHOTS
 *
 * The last two are folders. The frames of NUMBERED_VIDEO show their numbers in eight upright
 * stripes, as binary digits.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { chromium } from 'playwright-core';
import { serve } from './server.mjs';

const [dist, model, framesFolder, video, numberedVideo, badFolder, screenshots] =
  process.argv.slice(2);
const frames = readdirSync(framesFolder).map((name) => join(framesFolder, name));
const PHONE = { width: 390, height: 844 };
const DESKTOP = { width: 1200, height: 860 };
const ENOUGH_RUNS = 15;

const { server, address } = await serve(dist, dirname(model));
const profile = mkdtempSync(join(tmpdir(), 'chromium-'));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  viewport: DESKTOP,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--use-fake-device-for-media-stream',
  ],
});
// The runtime's memory grows by this call alone, and never shrinks.
await browser.addInitScript(() => {
  const { grow } = WebAssembly.Memory.prototype;
  window.grownPages = 0;
  WebAssembly.Memory.prototype.grow = function (pages) {
    window.grownPages += pages;
    return grow.call(this, pages);
  };
});
const page = await browser.newPage();
const requests = new Set();
const complaints = [];
page.on('request', (request) => requests.add(request.url()));
page.on('websocket', (socket) => requests.add(socket.url()));
page.on('console', (message) => {
  // LiteRT's log comes as errors, too.
  const line = message.text();
  if (message.type() === 'error' && !/^(INFO|WARNING):/.test(line)) complaints.push(line);
});
page.on('pageerror', (error) => complaints.push(String(error)));

const text = (selector) => page.textContent(selector);
const screenshot = (name) =>
  page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });

async function opened() {
  await page.getByText('600 classes').waitFor();
}

async function open() {
  await page.goto(address);
  await page.setInputFiles('#model-file', model);
  await opened();
}

async function openByAddress() {
  await page.goto(`${address}?model=${basename(model)}`);
  await opened();
}

/** Drops a file on the page. */
async function drop(path, type) {
  const file = { name: basename(path), type, base64: readFileSync(path, 'base64') };
  const dataTransfer = await page.evaluateHandle(({ name, type, base64 }) => {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
  }, file);
  await page.dispatchEvent('body', 'drop', { dataTransfer });
}

async function choose(kind, ...files) {
  await page.check(`[name=source][value=${kind}]`);
  if (files.length) await page.setInputFiles(`[data-source=${kind}] input`, files);
}

/** Clicks, and waits until an element's property changes to a value, however shortly it has it. */
async function click(selector, id, property, value) {
  await page.evaluate(
    ([id, property, value]) => {
      const element = document.getElementById(id);
      window.changed = new Promise((resolve) => {
        const onChange = () => element[property] === value && resolve();
        new MutationObserver(onChange).observe(element, { attributes: true, childList: true });
      });
    },
    [id, property, value],
  );
  await page.click(selector);
  await page.evaluate(() => window.changed);
}

/** Runs a file or files to the end. */
async function run() {
  await click('#start', 'stop', 'disabled', true);
}

async function saved(kind) {
  const downloading = page.waitForEvent('download');
  await page.click(`#save-${kind}`);
  const download = await downloading;
  return readFileSync(await download.path(), 'utf8');
}

async function error() {
  await page.waitForSelector('#error:visible');
  return text('#error');
}

async function seen(count) {
  await page.waitForFunction(
    (least) => Number(document.getElementById('seen').textContent) >= least,
    count,
  );
}

async function overImages() {
  await open();
  await choose('images', ...frames.toReversed());
  await run();
  const answers = JSON.parse(await saved('json'));
  const csv = await saved('csv');
  const grownBefore = await page.evaluate(() => window.grownPages);
  for (let i = 0; i < ENOUGH_RUNS; i++) await run();
  const grown = (await page.evaluate(() => window.grownPages)) - grownBefore;
  const again = JSON.parse(await saved('json'));
  await page.locator('#smoothing').fill('0.5');
  await run();
  await page.emulateMedia({ colorScheme: 'dark' });
  await screenshot('dark');
  await page.emulateMedia({ colorScheme: 'light' });
  return { answers, again, smoothed: JSON.parse(await saved('json')), csv, grown };
}

async function overVideo() {
  await openByAddress();
  await choose('video', video);
  await run();
  await screenshot('light');
  await page.setViewportSize(PHONE);
  await screenshot('phone');
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  await page.setViewportSize(DESKTOP);
  return { label: await text('#answer-label'), answers: JSON.parse(await saved('json')), overflow };
}

/** Which frames of a video the page shows; all by drag and drop. */
async function overNumberedVideo() {
  await page.goto(address);
  await drop(model, '');
  await opened();
  await page.evaluate(() => {
    window.numbers = [];
    const seen = document.getElementById('seen');
    const canvas = document.getElementById('canvas');
    new MutationObserver(() => {
      if (!Number(seen.textContent)) return;
      const { data, width } = canvas
        .getContext('2d')
        .getImageData(0, canvas.height / 2, canvas.width, 1);
      let number = 0;
      for (let bit = 0; bit < 8; bit++) {
        const x = Math.floor(((bit + 0.5) * width) / 8);
        number = 2 * number + (data[4 * x] > 127);
      }
      window.numbers.push(number);
    }).observe(seen, { childList: true });
  });
  await drop(numberedVideo, 'video/mp4');
  await run();
  return page.evaluate(() => window.numbers);
}

async function overCamera() {
  await open();
  await choose('camera');
  await page.click('#start');
  const refused = await error();
  await browser.grantPermissions(['camera']);
  await page.click('#start');
  await seen(8);
  await click('#reset', 'seen', 'textContent', '–');
  await seen(6);
  await click('#stop', 'stop', 'disabled', true);
  return { refused, answers: JSON.parse(await saved('json')) };
}

async function overBadFiles() {
  const sentences = {};
  await page.goto(address);
  await page.click('#start');
  sentences['no model'] = await error();
  for (const name of readdirSync(badFolder)) {
    await page.setInputFiles('#model-file', join(badFolder, name));
    await page.getByText(`${name} is not open.`).waitFor();
    sentences[name] = await error();
  }
  await screenshot('error');
  await open();
  await choose('video');
  await page.click('#start');
  sentences['no video'] = await error();
  await choose('video', model);
  await page.click('#start');
  await page.getByText('decoded').waitFor();
  sentences['bad video'] = await error();
  await choose('images', frames[0], model);
  await page.click('#start');
  await page.getByText('as an image').waitFor();
  sentences['bad image'] = await error();
  for (const query of ['none.tflite', 'https://example.invalid/a.tflite']) {
    await page.goto(`${address}?model=${encodeURIComponent(query)}`);
    sentences[query] = await error();
  }
  return sentences;
}

/** By the keyboard alone, from the top of the page. */
async function byKeyboard() {
  await openByAddress();
  const stops = [];
  for (let i = 0; i < 4; i++) {
    await page.keyboard.press('Tab');
    const focused = page.locator(':focus');
    stops.push(await focused.evaluate(({ id, value }) => id || value));
  }
  return stops;
}

try {
  const results = {
    images: await overImages(),
    video: await overVideo(),
    numbers: await overNumberedVideo(),
    camera: await overCamera(),
    keyboard: await byKeyboard(),
    complaints: [...complaints],
    errors: await overBadFiles(),
    address,
    requests: [...requests],
  };
  console.log(JSON.stringify(results));
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}
