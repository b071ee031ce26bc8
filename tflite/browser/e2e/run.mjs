/**
 * Uses the built page as a person would, in headless Chromium, and prints what came of it as JSON.
 *
 *     node e2e/run.mjs DIST MODEL FRAMES_FOLDER VIDEO BAD_FILES_FOLDER SCREENSHOTS_FOLDER
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { chromium } from 'playwright-core';
import { serve } from './server.mjs';

const [dist, model, framesFolder, video, badFolder, screenshots] = process.argv.slice(2);
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
  if (message.type() === 'error') complaints.push(message.text());
});
page.on('pageerror', (error) => complaints.push(String(error)));

const text = (selector) => page.textContent(selector);
const screenshot = (name) =>
  page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });

/** The page once the model is open. */
async function open(query = '') {
  await page.goto(address + query);
  if (!query) await page.setInputFiles('#model-file', model);
  await page.getByText('frames a second', { exact: false }).nth(1).waitFor();
  await page.waitForFunction(() => /classes/.test(document.getElementById('model-about').textContent));
}

async function choose(kind, ...files) {
  await page.check(`[name=source][value=${kind}]`);
  if (files.length) await page.setInputFiles(`[data-source=${kind}] input`, files);
}

/** Runs a file or files to the end. */
async function run() {
  await page.click('#start');
  await page.waitForSelector('#stop:enabled');
  await page.waitForSelector('#stop:disabled');
}

async function saved(kind) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.click(`#save-${kind}`)]);
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
  return { answers, again, smoothed: JSON.parse(await saved('json')), csv, grown };
}

async function overVideo() {
  await open(`?model=${basename(model)}`);
  await choose('video', video);
  await run();
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme });
    await screenshot(scheme);
  }
  await page.setViewportSize(PHONE);
  await screenshot('phone');
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  await page.setViewportSize(DESKTOP);
  return { label: await text('#answer-label'), answers: JSON.parse(await saved('json')), overflow };
}

async function overCamera() {
  await open();
  await choose('camera');
  await page.click('#start');
  const refused = await error();
  await browser.grantPermissions(['camera']);
  await page.click('#start');
  await seen(8);
  await page.click('#reset');
  await page.waitForFunction(() => Number(document.getElementById('seen').textContent) < 8);
  await seen(6);
  await page.click('#stop');
  await page.waitForSelector('#stop:disabled');
  return { refused, answers: JSON.parse(await saved('json')) };
}

async function overBadFiles() {
  const sentences = {};
  await page.goto(address);
  await page.click('#start');
  sentences['no model'] = await error();
  for (const name of readdirSync(badFolder)) {
    await page.setInputFiles('#model-file', join(badFolder, name));
    await page.getByText(`${name}: opening`).waitFor();
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
  await open(`?model=${basename(model)}`);
  const stops = [];
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press('Tab');
    stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.value));
  }
  return stops;
}

try {
  const results = {
    images: await overImages(),
    video: await overVideo(),
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
