/** Something that the person at the page can put right; the message tells them, in a sentence. */
export class Refusal extends Error {}
