/** Lines of probabilities over time, 100 by 100 units, and a legend. */

const SVG = 'http://www.w3.org/2000/svg';
/** A shorter stretch doesn't fill the width. */
const SHORTEST_S = 2;

export class Chart {
  constructor(
    private readonly svg: SVGSVGElement,
    private readonly legend: HTMLElement,
  ) {
    this.clear();
  }

  clear(): void {
    this.draw([], new Map(), [], []);
  }

  /** @param colours the classes to draw, with the numbers of their colours. */
  draw(
    labels: string[],
    colours: ReadonlyMap<number, number>,
    times: number[],
    probabilities: Float32Array[],
  ): void {
    const startS = times[0];
    const spanS = Math.max(times[times.length - 1] - startS, SHORTEST_S);
    const lines = [...colours].map(([index, colour]) => {
      const points = times.map((timeS, row) => {
        const x = (100 * (timeS - startS)) / spanS;
        return `${x.toFixed(2)},${(100 - 100 * probabilities[row][index]).toFixed(2)}`;
      });
      const line = document.createElementNS(SVG, 'polyline');
      line.setAttribute('points', points.join(' '));
      line.style.stroke = `var(--colour-${colour})`;
      return line;
    });
    this.svg.replaceChildren(...[0, 50, 100].map(gridLine), ...lines);

    this.legend.replaceChildren(
      ...[...colours].map(([index, colour]) => {
        const item = document.createElement('li');
        item.textContent = labels[index];
        item.style.setProperty('--colour', `var(--colour-${colour})`);
        return item;
      }),
    );
  }
}

function gridLine(y: number): SVGLineElement {
  const line = document.createElementNS(SVG, 'line');
  for (const [name, value] of Object.entries({ x1: 0, x2: 100, y1: y, y2: y })) {
    line.setAttribute(name, String(value));
  }
  return line;
}
